"""Compare a declaration with the database, and apply it: register versions, then set policies and rules of toggles."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from strategy_core.domain.audit import Command, values_digest
from strategy_core.domain.declaration import Declaration, DeclaredStrategy, DeclaredVersion
from strategy_core.domain.errors import DeclarationRefused, DuplicateVersion, FixedForLife, RolloutError
from strategy_core.domain.policy import Policy
from strategy_core.domain.toggles import rule_differences
from strategy_core.isolation.client import IsolatedStrategy
from strategy_core.market.source import CandleSource
from strategy_core.services.database import failure
from strategy_core.services.rollouts import policy_of
from strategy_core.services.toggles import check_rules, declare_rules
from strategy_core.services.transitions import recorded_change
from strategy_core.services.versions import check_fixed, register_version
from strategy_core.store import toggles as store
from strategy_core.store import versions
from strategy_core.store.engine import reading, retry_transient, transaction
from strategy_core.store.tables import StrategyRow, StrategyVersion

_NEW_VERSION = "versions are never edited: declare it under a new name"


class Drift(StrEnum):
    ADD = "add"
    CHANGE = "change"
    REFUSED = "refused"  # the file asks for what cannot be done


@dataclass(frozen=True, slots=True)
class Difference:
    """Where the database differs from the file.

    Attributes:
        what: kind and names of the object, such as `version fib_rsi 2.0.0`.
        of: the declared version, the toggle, or the strategy of a policy or setting.
    """

    drift: Drift
    what: str
    detail: str
    of: "DeclaredVersion | DeclaredToggle | str"


@dataclass(frozen=True, slots=True)
class DeclaredToggle:
    """A toggle whose rules are declared."""

    strategy_name: str
    name: str


@dataclass(frozen=True, slots=True)
class DeclarationDifference:
    """The result of `compare_declaration`.

    Attributes:
        differences: in the order in which they are applied.
        notes: policies, and rules of toggles, that the file does not mention and that stay as they are.
    """

    differences: Sequence[Difference]
    notes: Sequence[str]


class ApplyOutcome(StrEnum):
    APPLIED = "applied"
    UNCHANGED = "unchanged"  # another run was faster
    FAILED = "failed"
    NOT_TRIED = "not tried"


@dataclass(frozen=True, slots=True)
class Applied:
    """What became of one object."""

    what: str
    outcome: ApplyOutcome
    detail: str
    exit_code: int = 0


def compare_declaration(engine: Engine, declared: Declaration, *, deadline_s: float = 5.0) -> DeclarationDifference:
    """Return how the database differs from the file.

    A config is equal if it was given so at registration, or has every parameter. Otherwise the version's code is
    loaded, in isolation, to fill in the defaults. Other fields that are left out are not compared.
    """
    with reading(engine) as session:
        rows = {name: versions.get_strategy(session, name) for name in versions.strategy_names(session)}
        stored = {name: policy_of(session, name) for name in rows}
        known = {(each.strategy_name, each.version): each for each in versions.list_versions(session)}
    created = {each.strategy for each in declared.versions} - rows.keys()
    found: list[Difference] = []
    for name, strategy in declared.strategies.items():
        found += _of_strategy(rows.get(name), name, strategy, is_created=name in created)
    for version in declared.versions:
        found += _of_version(known.get((version.strategy, version.version)), version, deadline_s)
    for name in declared.policies:
        if name not in rows.keys() | created:
            found.append(_refused(f"policy {name}", f"{name} has no version: declare one", name))
            continue
        old = stored.get(name, Policy())
        if lines := old.differences(declared.policy_of(name)):
            drift = Drift.CHANGE if old != Policy() else Drift.ADD
            found.append(Difference(drift, f"policy {name}", "; ".join(lines), name))
    found += _of_toggles(engine, declared, rows, created)
    mentioned = (declared.strategies.keys() | {each.strategy for each in declared.versions}) - declared.policies.keys()
    kept = [name for name in sorted(mentioned) if stored.get(name, Policy()) != Policy()]
    notes = [f"policy {name} is not in the file and stays" for name in kept]
    return DeclarationDifference(found, [*notes, *_kept_toggles(engine, declared)])


def _of_toggles(
    engine: Engine, declared: Declaration, known: Collection[str], created: Collection[str]
) -> Iterator[Difference]:
    adding = {each.strategy for each in declared.versions}
    with reading(engine) as session:
        for strategy_name, toggles in declared.toggles.items():
            old = store.rules_of(store.rows_in_force(session, strategy_name))
            for name, rules in toggles.items():
                what, of = f"toggle {strategy_name} {name}", DeclaredToggle(strategy_name, name)
                if strategy_name not in known and strategy_name not in created:
                    yield _refused(what, f"{strategy_name} has no version: declare one", of)
                    continue
                before = old.get(name, [])
                lines = rule_differences(before, rules)
                if not lines:
                    continue
                later = strategy_name in adding
                try:
                    check_rules(session, strategy_name, name, before, rules, declares_later=later)
                except RolloutError as error:
                    yield _refused(what, str(error), of)
                else:
                    yield Difference(Drift.CHANGE if before else Drift.ADD, what, "; ".join(lines), of)


def _kept_toggles(engine: Engine, declared: Declaration) -> Iterator[str]:
    mentioned = declared.strategies.keys() | {each.strategy for each in declared.versions} | declared.toggles.keys()
    with reading(engine) as session:
        for strategy_name in sorted(mentioned):
            rules = store.rules_of(store.rows_in_force(session, strategy_name))
            for name in sorted(rules.keys() - declared.toggles.get(strategy_name, {}).keys()):
                yield f"toggle {strategy_name} {name} is not in the file, and its rules stay"


def _refused(what: str, why: str, of: DeclaredVersion | DeclaredToggle | str) -> Difference:
    return Difference(Drift.REFUSED, what, why, of)


def _of_strategy(
    row: StrategyRow | None, name: str, declared: DeclaredStrategy, *, is_created: bool
) -> Iterator[Difference]:
    if row is None and not is_created:
        yield _refused(f"strategy {name}", "it has no version: declare one, with which it is created", name)
    if row is not None:
        try:
            check_fixed(row, declared.scoring, declared.salt)
        except FixedForLife as error:
            yield _refused(f"strategy {name}", str(error), name)


def _of_version(known: StrategyVersion | None, declared: DeclaredVersion, deadline_s: float) -> Iterator[Difference]:
    what = f"version {declared.strategy} {declared.version}"
    if known is not None:
        if changed := _changes(known, declared, deadline_s):
            yield _refused(what, f"{', '.join(changed)}; {_NEW_VERSION}", declared)
        return
    try:
        config = _filled(declared, deadline_s)
    except RolloutError as error:
        yield _refused(what, str(error), declared)
    else:
        shown = ", ".join(f"{name}={value}" for name, value in config.items())
        yield Difference(Drift.ADD, what, f"entry point {declared.loaded_from}, {shown or 'no parameters'}", declared)


def _changes(known: StrategyVersion, declared: DeclaredVersion, deadline_s: float) -> list[str]:
    """Return what a registered version has that its declaration has not, a line each."""
    pairs = {
        "entry_point": (known.entry_point, declared.loaded_from),
        "symbols": (sorted(known.symbols), sorted(set(declared.symbols or known.symbols))),
        "timeframe": (known.timeframe, declared.timeframe or known.timeframe),
    }
    changed = [f"{name} is {found}, declared {asked}" for name, (found, asked) in pairs.items() if found != asked]
    same = (values_digest(known.config), known.registration_report.get("given_digest"))
    if changed or values_digest(declared.config) in same:
        return changed
    try:
        config = _filled(declared, deadline_s)
    except RolloutError as error:
        return [f"its config cannot be compared unless every parameter is declared: {error}"]
    names = sorted(known.config.keys() | config.keys())
    return [
        f"config.{name} is {known.config.get(name)!r}, declared {config.get(name)!r}"
        for name in names
        if values_digest(known.config.get(name)) != values_digest(config.get(name))
    ]


def _filled(declared: DeclaredVersion, deadline_s: float) -> Mapping[str, Any]:
    """Return the declared config with every default filled in by the strategy's own model."""
    with IsolatedStrategy(declared.loaded_from, declared.config, deadline_s=deadline_s) as strategy:
        return strategy.describe().config


def apply_declaration(
    engine: Engine,
    command: Command,
    source: Callable[[], CandleSource],
    declared: Declaration,
    *,
    deadline_s: float = 5.0,
) -> list[Applied]:
    """Make the database as the file declares, and return what became of each difference, in order.

    Versions are registered in shadow. Each object is one transaction with one audit event. The first one that fails
    ends the run: earlier ones stay applied, and later ones are not tried. A second run continues.

    Args:
        source: opens the feed for the vetting of a new version.

    Raises:
        DeclarationRefused: the file asks for what cannot be done. Nothing was applied.
    """
    differences = compare_declaration(engine, declared, deadline_s=deadline_s).differences
    if refused := [f"{each.what}: {each.detail}" for each in differences if each.drift is Drift.REFUSED]:
        raise DeclarationRefused(refused)
    done: list[Applied] = []
    for each in differences:
        if done and done[-1].outcome in (ApplyOutcome.FAILED, ApplyOutcome.NOT_TRIED):
            done.append(Applied(each.what, ApplyOutcome.NOT_TRIED, each.detail))
            continue
        try:
            if isinstance(each.of, DeclaredVersion):
                changed = _register(engine, command, source(), declared, each.of, deadline_s)
            elif isinstance(each.of, DeclaredToggle):
                strategy_name, name = each.of.strategy_name, each.of.name
                rules = declared.toggles[strategy_name][name]
                changed = declare_rules(engine, command, strategy_name=strategy_name, name=name, rules=rules)
            else:
                changed = set_policy(engine, command, strategy_name=each.of, policy=declared.policy_of(each.of))
        except RolloutError as error:
            done.append(Applied(each.what, ApplyOutcome.FAILED, str(error), error.exit_code))
        except DBAPIError as error:
            done.append(Applied(each.what, ApplyOutcome.FAILED, failure(error), 1))
        else:
            done.append(Applied(each.what, ApplyOutcome.APPLIED if changed else ApplyOutcome.UNCHANGED, each.detail))
    return done


def _register(
    engine: Engine,
    command: Command,
    source: CandleSource,
    declared: Declaration,
    version: DeclaredVersion,
    deadline_s: float,
) -> bool:
    """Register a version and return True, or False if another run has just registered the same."""
    strategy = declared.strategies.get(version.strategy, DeclaredStrategy())
    try:
        register_version(
            engine,
            command,
            source,
            strategy_name=version.strategy,
            version=version.version,
            config=version.config,
            entry_point=version.loaded_from,
            symbols=version.symbols or source.symbols(),
            timeframe=version.timeframe or source.timeframe,
            scoring=strategy.scoring,
            salt=strategy.salt,
            deadline_s=deadline_s,
        )
    except DuplicateVersion:
        with reading(engine) as session:
            known = versions.get_version(session, version.strategy, version.version)
        if _changes(known, version, deadline_s):
            raise
        return False
    return True


@retry_transient()
def set_policy(engine: Engine, command: Command, *, strategy_name: str, policy: Policy) -> bool:
    """Replace the policy of a strategy. Return whether it was another one: an equal one is not recorded.

    Raises:
        UnknownStrategy
    """
    with transaction(engine) as session:
        versions.lock_strategy(session, strategy_name)
        if policy_of(session, strategy_name) == policy:
            return False
        stored = versions.find_policy(session, strategy_name)
        with recorded_change(session, command, "set_policy", strategy_name) as change:
            change.before["policy"] = stored.policy if stored else Policy().model_dump(mode="json")
            change.after["policy"] = policy.model_dump(mode="json")
            versions.put_policy(session, strategy_name, change.after["policy"])
        return True
