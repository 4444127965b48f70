"""Why users were taken off a version: what was seen, on which rows that rests, whom it had reached, what it cost."""

from datetime import timedelta

from strategy_core.domain.alert import WHY
from strategy_core.domain.span import told
from strategy_core.report import parts
from strategy_core.report.text import Markdown, argument, commands, facts, plain, sections, table
from strategy_core.services.report import RolledBack


def rollback_markdown(found: RolledBack, *, also: str = "") -> str:
    """Return the whole of it; *also* is Markdown that stands at its end."""
    event = found.event
    return sections(
        f"# {plain(event.strategy_name)} {plain(event.version)} was rolled back",
        rollback_sections(found),
        "## What next",
        next_words(found),
        commands(acts(found)),
        also,
    )


def rollback_sections(found: RolledBack, *, with_cost: bool = True, wide: bool = False) -> str:
    """Return it without the headline and what comes next."""
    return sections(
        _seen(found),
        "## What every gate said",
        parts.gates(found.verdicts, wide=wide) if found.verdicts else "No gate had spoken.",
        "## Whom it had reached",
        parts.reached(found.served, found.directory),
        _picture(found),
        *(["## What it cost", _cost(found)] if found.cost and with_cost else []),
        "## The newest rows it rests on",
        _rows(found),
    ).rstrip()


def next_words(found: RolledBack) -> str:
    version, active = plain(found.event.version), found.now_active
    serves = f"{plain(active)} serves every user who has no canary. " if active else ""
    return (
        f"{serves}{version} is quarantined: it is ramped again only with a reason that overrides this. Its mended "
        "successor is registered as a version of its own."
    )


def acts(found: RolledBack) -> list[str]:
    """Return the commands that act next, the likeliest first."""
    event = found.event
    strategy, version = argument(event.strategy_name), argument(event.version)
    look = [f"rollout report {event.rollout_id}", f"rollout verdicts {strategy} --rollout {event.rollout_id}"]
    return [
        *(look if event.rollout_id else [f"rollout audit log {strategy}"]),
        f'rollout start {strategy} {version} --override-reason "..." {WHY}',
        f"rollout retire {strategy} {version} {WHY}",
    ]


def _seen(found: RolledBack) -> str:
    event, gate = found.event, found.gate
    last = found.served[-1] if found.served else None
    seen: list[tuple[str, object]] = [
        ("when", event.at),
        ("by", f"{event.actor} ({event.source})"),
        ("why", event.reason),
    ]
    if gate is not None:
        seen += [
            ("gate", Markdown(f"{plain(gate.gate)}: **{gate.verdict}**")),
            ("value", gate.value),
            ("limit", gate.limit),
            ("interval", parts.interval(gate.low, gate.high)),
            ("n", gate.n),
        ]
    users = parts.users(last.users, found.directory) if last else ""
    seen += [
        ("users at that time", f"{last.percent:g} %" + (f", {users}" if users else "") if last else "nobody"),
        ("exposed for", told(sum((one.until - one.since for one in found.served), timedelta())) if last else None),
        ("active now", found.now_active),
    ]
    if event.request_id:
        seen.append(("request", event.request_id))
    return facts(seen)


def _picture(found: RolledBack) -> str:
    if not found.served:
        return ""
    return parts.share_picture(found.served, start=found.served[0].since, end=found.event.at, ended="rolled back")


def _cost(found: RolledBack) -> str:
    assert found.cost is not None
    return parts.cost(found.cost, found.event.version, "its control")


def _rows(found: RolledBack) -> str:
    slots = [
        (
            slot.timestamp,
            slot.symbol,
            _side(slot.canary_side),
            parts.signed(slot.canary_r),
            _side(slot.active_side),
            parts.signed(slot.active_r),
            parts.signed(slot.canary_r - slot.active_r),
        )
        for slot in found.slots
    ]
    said = [
        (row.timestamp, row.symbol, row.decision, f"{row.error_kind}: {row.error}" if row.error else row.reason)
        for row in found.decisions
    ]
    ids = [(row.gate, str(row.id), row.ticked_at) for row in found.verdicts] if found.event.evidence else []
    return sections(
        "**Slots that were booked last**" if slots else "",
        table(["candle", "symbol", "it", "R", "control", "its R", "difference"], slots) if slots else "",
        "**What it decided last**" if said else "",
        table(["candle", "symbol", "decision", "reason"], said) if said else "",
        "**Verdicts that the audit event names**" if ids else "",
        table(["gate", "id", "at"], ids) if ids else "",
    ).rstrip()


def _side(side: int) -> str:
    return {1: "buy", -1: "sell"}.get(side, "hold")
