"""The page on the toggles of a strategy: what versions declare, rules, what a user gets, and forms for rules."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import urlencode

from fastapi import Depends, Path, Query
from starlette.responses import Response

from strategy_core.api.console.page import OwnerAct, Visited, console_router
from strategy_core.api.console.session import SentForm
from strategy_core.api.console.start import Strategy, strategy_path
from strategy_core.domain.audit import Command
from strategy_core.domain.errors import RolloutError, UnknownRule, UnknownToggle
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.toggles import MOST_RULES, Resolved, Rule, ToggleName, parse_value, read_rule
from strategy_core.services import toggles
from strategy_core.services.strategy_page import StrategyPage, read_strategy

Toggle = Annotated[ToggleName, Path(description="Name of the toggle.")]
_Text = Annotated[str, Query(max_length=64)]
_User = Annotated[str, Query(max_length=200)]
_FIXED = "no version and no decision changes. Platforms use the rule from their next look on"

router = console_router()


@dataclass(frozen=True, slots=True)
class DraftRule:
    """A rule as typed into the form, and the user for whom it is previewed. Empty fields are no conditions."""

    value: _Text = ""
    users: Annotated[str, Query(max_length=4_000)] = ""
    segment: _Text = ""
    capital_at_least: _Text = ""
    capital_at_most: _Text = ""
    percent: _Text = ""
    place: Annotated[str, Query(pattern=r"^([1-9][0-9]?)?$")] = ""
    user: _User = ""

    def rule(self, name: str) -> Rule:
        """Return the rule. Raise InvalidToggle with the field if it is none."""
        given = {
            "user_ids": [each for each in self.users.replace(",", " ").split() if each] or None,
            "segment": self.segment.strip() or None,
            "capital_at_least": self.capital_at_least.strip() or None,
            "capital_at_most": self.capital_at_most.strip() or None,
            "percent": self.percent.strip() or None,
        }
        return read_rule(given, parse_value(self.value.strip()), name, self.position or 1)

    @property
    def position(self) -> int | None:
        return int(self.place) if self.place else None


Draft = Annotated[DraftRule, Depends()]


def toggles_path(strategy_name: str, *, user: str = "") -> str:
    return strategy_path(strategy_name, below="/toggles") + (f"?{urlencode({'user': user})}" if user else "")


@router.get("/strategies/{strategy_name}/toggles")
def show_toggles(visit: Visited, strategy_name: Strategy, user: _User = "") -> Response:
    """Show the toggles with their rules, and what one user gets."""
    found = toggles.list_toggles(visit.engine, visit.reads(strategy_name))
    page = read_strategy(visit.engine, strategy_name, most_rollouts=0)
    resolved, problem = None, ""
    if user:
        try:
            resolved = toggles.resolve_toggles(visit.engine, user_id=user, strategy_name=strategy_name, now=visit.now)
        except RolloutError as error:
            problem = str(error)
    return visit.render(
        "toggles.html",
        name=strategy_name,
        toggles=[(each, _versions(page, each)) for each in found.toggles],
        strategy_path=strategy_path(strategy_name),
        path=toggles_path(strategy_name),
        user=user,
        resolved=resolved,
        problem=problem,
        shown=_shown,
        most_rules=MOST_RULES,
    )


def _versions(page: StrategyPage, toggle: toggles.ToggleState) -> Sequence[tuple[str, str, str]]:
    """Return (version, status, what it allows) of the versions that declare a toggle, those that serve users first."""
    status = {each.version: each.status for each in page.versions}
    order = {Status.ACTIVE: 0, Status.CANARY: 1}
    rows = [
        (version, status[version], f"{each.allowed}; default {_shown(each.default)}")
        for version, each in toggle.declared.items()
        if version in status  # another owner may have changed it between the two reads
    ]
    return sorted(rows, key=lambda row: order.get(Status(row[1]), 2))


@router.get("/strategies/{strategy_name}/toggles/{name}/set")
@router.post("/strategies/{strategy_name}/toggles/{name}/set")
def set_rule(visit: Visited, strategy_name: Strategy, name: Toggle, draft: Draft) -> Response:
    """Show what a rule will do, and set it."""

    def describe() -> OwnerAct:
        found = toggles.preview_rule(
            visit.engine,
            strategy_name=visit.reads(strategy_name),
            name=name,
            rule=draft.rule(name),
            now=visit.now,
            position=draft.position,
            user_id=draft.user.strip() or None,
        )
        effects = [f"it becomes rule {found.number} of {len(found.rules)}: {found.rules[found.number - 1].shown}"]
        if found.replaced is not None:
            effects.append(f"it replaces the rule of the same users: {found.replaced.shown}")
        if found.number > 1:
            effects.append("earlier rules come first: it decides for users that none of them concerns")
        if found.user is not None:
            effects.append(_user_line(found.user, name))
        return OwnerAct(
            f"Set a rule of {name} of {strategy_name}",
            [*effects, _FIXED],
            "Set the rule",
            generation=found.generation,
        )

    def perform(_form: SentForm) -> str:
        command = Command(visit.changes(strategy_name), visit.now, visit.reason(), if_generation=visit.generation)
        rule = draft.rule(name)
        toggles.set_rule(
            visit.engine, command, strategy_name=strategy_name, name=name, rule=rule, position=draft.position
        )
        return f"{name} of {strategy_name} has the rule {rule.shown}"

    return visit.act(describe, perform, back=toggles_path(strategy_name, user=draft.user.strip()))


@router.get("/strategies/{strategy_name}/toggles/{name}/remove")
@router.post("/strategies/{strategy_name}/toggles/{name}/remove")
def remove_rule(
    visit: Visited, strategy_name: Strategy, name: Toggle, rule: Annotated[int, Query(ge=1, le=MOST_RULES)] = 1
) -> Response:
    """Remove a rule by its number."""

    def describe() -> OwnerAct:
        found = toggles.list_toggles(visit.engine, visit.reads(strategy_name))
        toggle = next((each for each in found.toggles if each.name == name), None)
        if toggle is None:
            raise UnknownToggle(strategy_name, name, [each.name for each in found.toggles])
        if rule > len(toggle.rules):
            raise UnknownRule(strategy_name, name, rule, len(toggle.rules))
        effects = [
            f"rule {rule} of {len(toggle.rules)} ends: {toggle.rules[rule - 1].shown}",
            "its users have what the other rules say, or the default of their version",
            _FIXED,
        ]
        title = f"Remove rule {rule} of {name} of {strategy_name}"
        return OwnerAct(title, effects, "Remove the rule", generation=found.generation)

    def perform(_form: SentForm) -> str:
        command = Command(visit.changes(strategy_name), visit.now, visit.reason(), if_generation=visit.generation)
        toggles.remove_rules(visit.engine, command, strategy_name=strategy_name, name=name, number=rule)
        return f"rule {rule} of {name} of {strategy_name} is removed"

    return visit.act(describe, perform, back=toggles_path(strategy_name))


def _user_line(user: toggles.UserPreview, name: str) -> str:
    if user.before is None or user.after is None:
        return f"{user.user_id} has no {name}: version {user.version}, which they get, does not declare it"
    same = user.before.value == user.after.value
    has = "keeps" if same else f"has {_shown(user.before.value)} now and gets"
    return f"{user.user_id} {has} {_reason(user.after)}"


def _reason(found: Resolved) -> str:
    return f"{_shown(found.value)} ({found.why})"


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
