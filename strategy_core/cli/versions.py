"""Commands that register, list, show, activate and retire versions."""

from dataclasses import asdict, astuple
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from strategy_core.cli.context import (
    Context,
    Override,
    Reason,
    StrategyName,
    VersionName,
    Yes,
    check_folder,
    command,
    read_json,
)
from strategy_core.domain.audit import Command
from strategy_core.domain.errors import InvalidConfig, InvalidSetting
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.parsing import owners_time

if TYPE_CHECKING:
    from strategy_core.store.tables import StrategyVersion

commands = typer.Typer()
_LONG = {"fingerprint_parts", "registration_report"}


@command(commands)
def register(
    shell: Context,
    strategy: StrategyName,
    version: Annotated[str, typer.Argument(metavar="VERSION", help="Name of the new version.")],
    config: Annotated[str, typer.Option(metavar="JSON", help="Configuration as JSON, or @FILE.")] = "{}",
    entry_point: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Built-in strategy, or package.module:Class. Default: STRATEGY."),
    ] = None,
    symbols: Annotated[
        str | None, typer.Option(metavar="NAMES", help="For example GOLD,SILVER. Default: all symbols of the feed.")
    ] = None,
    timeframe: Annotated[
        str | None, typer.Option(metavar="TIME", help="For example 1h or 15m. Default: the feed's timeframe.")
    ] = None,
    status: Annotated[Status, typer.Option(help="Initial status.")] = Status.SHADOW,
    reason: Reason = "",
    yes: Yes = False,
) -> None:
    """Validate and register an immutable version."""
    from strategy_core.domain.candles import TIMEFRAMES
    from strategy_core.services.queries import all_versions
    from strategy_core.services.versions import register_version

    settings = read_json(config, lambda problems: InvalidConfig(entry_point or strategy, problems))
    if status is Status.ACTIVE:
        shell.confirm(f"{version} becomes the version that users of {strategy} get", yes=yes)
    engine, source = shell.engine, shell.candles()
    if timeframe in TIMEFRAMES and timeframe != source.timeframe:
        allowed = f"{source.timeframe}, as the feed is read, or set ROLLOUT_TIMEFRAME={timeframe} first"
        raise InvalidSetting("--timeframe", timeframe, allowed)
    registered = register_version(
        engine,
        Command(shell.actor, shell.now, reason),
        source,
        strategy_name=strategy,
        version=version,
        config=settings,
        entry_point=entry_point or strategy,
        symbols=source.symbols() if symbols is None else _listed(symbols),
        timeframe=timeframe or source.timeframe,
        status=status,
        deadline_s=shell.settings.decision_deadline_s,
    )
    headline = f"{strategy} {version} is registered: {registered.status}"
    following = f"rollout replay {strategy} {version}   (evidence from past candles)"
    if not all_versions(engine, strategy, status=Status.ACTIVE):
        following = f"rollout activate {strategy} {version}   (no version is active, so users of {strategy} get none)"
    elif status is Status.ACTIVE:
        following = f"rollout register {strategy} VERSION ...   (a version to compare it with)"
    _answer_version(shell, registered, headline, following=following)


@command(commands)
def retrain(
    shell: Context,
    strategy: StrategyName,
    version: Annotated[str, typer.Argument(metavar="VERSION", help="Name of the new version.")],
    until: Annotated[
        str, typer.Option(metavar="TIME", help="Train on candles before this time: 2026-01-31 or 2026-01-31T12:00Z.")
    ],
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Random seed, for the same model again.")] = 7,
    symbol: Annotated[
        str | None, typer.Option(metavar="NAME", help="Symbol to train on, if the strategy has several.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.svg", help="Also draw the training.")] = None,
    reason: Reason = "",
) -> None:
    """Train ppo_gold on the feed's candles, and register the model as a new version in shadow.

    Takes minutes, with low priority. If the training or the registration is refused, nothing is stored.
    """
    import sys

    from strategy_core.cli.context import progress
    from strategy_core.report.charts import training_svg
    from strategy_core.services.retrain import retrain as train_and_register

    end = owners_time(until, "--until")
    check_folder("plot", plot)

    def show(done: int, total: int) -> None:
        if not done and not sys.stderr.isatty():  # a terminal has a bar
            typer.echo(f"training {strategy} {version} on candles before {end:%Y-%m-%d}, which takes minutes", err=True)
        shown("training", done, total)

    with progress() as shown:
        found = train_and_register(
            shell.engine,
            Command(shell.actor, shell.now, reason),
            shell.candles(),
            strategy_name=strategy,
            version=version,
            until=end,
            models=shell.settings.models,
            seed=seed,
            symbol=symbol,
            deadline_s=shell.settings.decision_deadline_s,
            clock=shell.clock.now,
            progress=show,
        )
    card, learned = found.training.model.card, found.training.learning
    if plot is not None:
        plot.write_text(training_svg(f"{strategy} {version}", learned.rewards, card.seed, found.years), "utf-8")
    data = {
        "version": found.version.model_dump(mode="json", exclude=_LONG),
        "card": card.model_dump(mode="json"),
        "years": [asdict(year) for year in found.years],
        "file": str(found.file),
    }
    following = f"Next: rollout replay {strategy} {version} --from {card.trained_until[:10]}   (evidence out of sample)"
    shell.answer(data, found.summary, *found.notes, following)


@command(commands, "list")
def list_(
    shell: Context,
    strategy: Annotated[str | None, typer.Option(metavar="NAME", help="Only this strategy.")] = None,
    status: Annotated[Status | None, typer.Option(help="Only versions with this status.")] = None,
) -> None:
    """List versions, oldest first."""
    from strategy_core.cli.context import table
    from strategy_core.services.queries import all_versions

    found = all_versions(shell.engine, strategy, status=status)
    columns = ["strategy", "version", "status", "entry point", "symbols", "timeframe", "since", "quarantined"]
    rows = [
        (v.strategy_name, v.version, v.status, v.entry_point, v.symbols, v.timeframe, _since(v), v.quarantined_at)
        for v in found
    ]
    shell.answer([v.model_dump(mode="json", exclude=_LONG) for v in found], table(columns, rows))


@command(commands)
def show(shell: Context, strategy: StrategyName, version: VersionName) -> None:
    """Show a version and its registration report."""
    from strategy_core.services.queries import get_version
    from strategy_core.services.status import watch_of

    found = get_version(shell.engine, strategy, version)
    watch = watch_of(shell.engine, strategy) if found.status == Status.ACTIVE else None
    _answer_version(shell, found, watch=watch)


@command(commands)
def activate(
    shell: Context,
    strategy: StrategyName,
    version: VersionName,
    reason: Reason = "",
    override_reason: Override = "",
    yes: Yes = False,
) -> None:
    """Make a version active for all users and retire its predecessor."""
    from strategy_core.services.versions import activate_version

    engine = shell.engine
    shell.confirm(f"{version} becomes the version that users of {strategy} get", yes=yes)
    found = activate_version(
        engine,
        Command(shell.actor, shell.now, reason, override_reason=override_reason, four_eyes=shell.settings.four_eyes),
        strategy_name=strategy,
        version=version,
    )
    shell.answer(found.model_dump(mode="json", exclude=_LONG), f"{strategy} {version} is active")


@command(commands)
def retire(
    shell: Context,
    strategy: StrategyName,
    version: VersionName,
    reason: Reason = "",
    close: Annotated[
        bool, typer.Option("--close", help="Retire the active version too, if it is the last: closes the strategy.")
    ] = False,
    orphans_to: Annotated[
        str, typer.Option(metavar="VERSION", help="Who takes its open positions over, or flatten. Needs a reason.")
    ] = "",
    yes: Yes = False,
) -> None:
    """Retire a shadow version, or a canary without an open rollout.

    With --close the last version can be retired. Its users then get no version, until one is activated.
    """
    from strategy_core.services.versions import retire_version

    engine = shell.engine
    if close:
        shell.confirm(f"{strategy} is closed: its users get no version", yes=yes)
    found = retire_version(
        engine,
        Command(shell.actor, shell.now, reason),
        strategy_name=strategy,
        version=version,
        close=close,
        orphans_to=orphans_to,
    )
    shell.answer(found.model_dump(mode="json", exclude=_LONG), f"{strategy} {version} is retired")


@command(commands)
def isolate(shell: Context) -> None:
    """Try to break out of the isolation that versions run in on this machine."""
    from strategy_core.cli.context import table
    from strategy_core.isolation.probe import prove_isolation
    from strategy_core.isolation.sandbox import available

    found, attempts = available(), prove_isolation(deadline_s=shell.settings.decision_deadline_s)
    open_doors = [attempt for attempt in attempts if not attempt.refused]
    rows = [(attempt.what, attempt.detail) for attempt in open_doors]
    shell.answer(
        {"isolation": str(found.level), "missing": dict(found.missing), "tried": [asdict(each) for each in attempts]},
        f"versions run in isolation: {found}",
        f"{len(attempts) - len(open_doors)} of {len(attempts)} attempts were refused",
        *([table(["not refused", "detail"], rows)] if rows else []),
    )
    if open_doors:
        raise typer.Exit(1)


def _listed(symbols: str) -> list[str]:
    return [name.strip() for name in symbols.split(",")] if symbols.strip() else []


def _since(version: "StrategyVersion") -> object:
    stamps = {Status.ACTIVE: version.activated_at, Status.RETIRED: version.retired_at}
    return stamps.get(Status(version.status), version.created_at)


def _known_answers(report: dict[str, Any]) -> str:
    """Return how many windows each worker is asked again, and the digest of the answers."""
    if not report.get("answers_digest"):
        return "none recorded: it may give other answers on another machine"
    return f"{report['answers_windows']} windows, {report['answers_digest']}"


def _answer_version(
    shell: Context,
    version: "StrategyVersion",
    headline: str | None = None,
    *,
    watch: str | None = None,
    following: str | None = None,
) -> None:
    from strategy_core.cli.context import facts_table, table
    from strategy_core.isolation.fingerprint import list_model_files

    files = list_model_files(version.fingerprint_parts)
    report: dict[str, Any] = version.registration_report
    known = {
        "version": f"{version.strategy_name} {version.version}",
        "status": version.status,
        **({"watch": watch} if watch else {}),
        "entry point": version.entry_point,
        "config": ", ".join(f"{key}={value}" for key, value in version.config.items()),
        "symbols": version.symbols,
        "timeframe": version.timeframe,
        "warm-up": f"{version.warmup_bars} candles",
        "fingerprint": version.fingerprint,
        **({"trained until": version.trained_until} if version.trained_until else {}),
        "known answers": _known_answers(report),
        "registered": version.created_at,
        "activated": version.activated_at,
        "retired": version.retired_at,
        "quarantined": version.quarantined_at,
    }
    columns = ["check", "passed", "decisions", "signals", "detail"]
    checks = [[check[column if column != "check" else "name"] for column in columns] for check in report["checks"]]
    shell.answer(
        version.model_dump(mode="json") | {"watch": watch, "model_files": [asdict(file) for file in files]},
        *([headline] if headline else []),
        facts_table(known),
        *([table(["model file", "fingerprint"], [astuple(file) for file in files])] if files else []),
        table(columns, checks, title="Registration report"),
        *(f"warning: {warning}" for warning in report["warnings"]),
        *([f"Next: {following}"] if following else []),
    )
