"""Flows that set and remove the rules of toggles."""

from flows.parameters import AnySegment, Owner, Percent, Remark, Strategy, Toggle, ToggleValue
from flows.runtime import open_runtime, owned_by, owner_flow
from strategy_core.domain.audit import Command
from strategy_core.domain.toggles import parse_value, read_rule
from strategy_core.services.toggles import ToggleState, remove_rules, set_rule


@owner_flow("set {toggle} of {strategy_name}")
def set_toggle(
    strategy_name: Strategy,
    toggle: Toggle,
    value: ToggleValue,
    owner: Owner,
    segment: AnySegment = "",
    percent: Percent = 100.0,
    reason: Remark = "",
) -> str:
    """Give users a value of a toggle, by a rule after all others. No decision changes.

    A rule with the same segment and percentage is replaced.

    Args:
        strategy_name: Strategy name.
        toggle: Name of the toggle, as a version declares it.
        value: true, false, a number or a text.
        owner: Your name.
        segment: Only members of this segment. Leave empty for all users.
        percent: Only this share of users.
        reason: Stored in the audit trail.
    """
    when = {"segment": segment or None, "percent": None if percent == 100 else percent}
    rule = read_rule(when, parse_value(value), toggle, 1)
    with open_runtime() as runtime:
        command = Command(owned_by(owner), runtime.now, reason)
        found = set_rule(runtime.engine, command, strategy_name=strategy_name, name=toggle, rule=rule)
    return _line(found)


@owner_flow("remove the rules of {toggle} of {strategy_name}")
def remove_toggle_rules(strategy_name: Strategy, toggle: Toggle, owner: Owner, reason: Remark = "") -> str:
    """Remove all rules of a toggle. Users then have the default of their version.

    Args:
        strategy_name: Strategy name.
        toggle: Name of the toggle.
        owner: Your name.
        reason: Stored in the audit trail.
    """
    with open_runtime() as runtime:
        command = Command(owned_by(owner), runtime.now, reason)
        found = remove_rules(runtime.engine, command, strategy_name=strategy_name, name=toggle)
    return _line(found)


def _line(found: ToggleState) -> str:
    rules = [f"{at}. {rule.when.shown_with_ids}: {rule.value}" for at, rule in enumerate(found.rules, 1)]
    return f"{found.strategy_name} {found.name}: {'; '.join(rules) or 'no rule'}"
