"""What one change of a strategy came to: who did what, from what to what, and why."""

from collections.abc import Mapping
from typing import Any

from strategy_core.report.text import Markdown, facts, plain, sections, table
from strategy_core.store.rollout_tables import AuditEvent

_FACTS = {"active": "active version", "canary": "canary", "percent": "users of the canary", "rollout": "rollout"}


def change_markdown(event: AuditEvent, *, also: str = "") -> str:
    """Return what an audit event says; *also* is Markdown that stands at its end."""
    name = f"{plain(event.strategy_name)} {plain(event.version)}"
    return sections(
        f"# {name}: {plain(event.action.replace('_', ' '))}",
        facts(
            [
                ("by", f"{event.actor} ({event.role}, {event.source})"),
                ("at", event.at),
                ("why", event.reason or "no reason was given"),
                ("generation", event.position),
            ]
        ),
        table(["what", "before", "after"], changes(event)),
        also,
    )


def changes(event: AuditEvent) -> list[tuple[str, object, object]]:
    """Return each fact before and after, what has changed in bold."""
    return [
        (said, *_pair(_value(name, event.before), _value(name, event.after)))
        for name, said in _FACTS.items()
        if name in event.before or name in event.after
    ]


def _pair(before: str, after: str) -> tuple[Markdown, Markdown]:
    old, new = Markdown(plain(before)), plain(after)
    return old, Markdown(new if before == after else f"**{new}**")


def _value(name: str, facts_of: Mapping[str, Any]) -> str:
    value = facts_of.get(name)
    match name, value:
        case _, None:
            return "none"
        case "percent", int() | float():
            return f"{value:g} %"
        case "rollout", {"state": state, "stage": int(stage)}:
            return f"{str(state).replace('_', ' ')}, stage {stage + 1}"
        case _:
            return str(value)
