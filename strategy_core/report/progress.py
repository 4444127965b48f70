"""How a rollout goes, on one screen: stage, users, gates, evidence of harm, and what must happen next."""

from datetime import timedelta

from strategy_core.domain.alert import WHY
from strategy_core.domain.ramp import ENDED, State
from strategy_core.domain.span import told
from strategy_core.report import parts
from strategy_core.report.text import Markdown, argument, commands, facts, plain, points, sections
from strategy_core.services.report import Progress
from strategy_core.store.rollout_tables import Rollout


def headline(progress: Progress) -> str:
    """Return, as Markdown, what stands above everything else."""
    rollout = progress.status.rollout
    name = f"{plain(rollout.strategy_name)} {plain(rollout.version)} against {plain(rollout.control_version)}"
    state = rollout.state.replace("_", " ")
    return (
        f"{name}: {state}" if State(rollout.state) in ENDED else f"{name}: {state} at {progress.percent:g} % of users"
    )


def progress_markdown(progress: Progress, *, also: str = "") -> str:
    """Return the whole of it; *also* is Markdown that stands at its end."""
    rollout = progress.status.rollout
    return sections(
        f"# {headline(progress)}",
        standing(progress),
        needs(progress),
        "## Gates",
        gates(progress),
        parts.harm_picture(progress.harm, start=rollout.started_at, end=progress.at),
        parts.share_picture(progress.served, start=rollout.started_at, end=progress.at, ended=_ended(rollout)),
        "## What an owner can do",
        commands(acts(rollout)),
        also,
    )


def standing(progress: Progress) -> str:
    """Return where it stands, a fact a line."""
    rollout, outlook = progress.status.rollout, progress.status.outlook
    users = parts.users(progress.users, progress.directory)
    return facts(
        [
            ("stages", stages(progress)),
            ("users", f"{progress.percent:g} %" + (f", {users}" if users else "")),
            ("in this stage since", rollout.stage_entered_at),
            ("minimum time left", _left(outlook.minimum_left)),
            ("maximum time left", _left(outlook.maximum_left)),
            ("blind since", rollout.blind_since),
            ("promoted", rollout.promoted_at),
            ("started", _started(progress)),
            ("ended", rollout.ended_at),
            ("last tick", rollout.last_tick_at),
            ("why it stands so", rollout.reason or None),
        ]
    )


def needs(progress: Progress) -> str:
    lines = progress.status.outlook.needs
    return sections("**Before it goes on:**", points(lines)).rstrip() if lines else ""


def gates(progress: Progress, *, wide: bool = False) -> str:
    return parts.gates(progress.status.verdicts, progress.status.since.get, wide=wide)


def stages(progress: Progress) -> Markdown:
    """Return the plan's percents, the present one bold."""
    at = progress.status.rollout.stage_index
    percents = [
        f"**{percent:g}**" if at == place else f"{percent:g}" for place, percent in enumerate(_percents(progress))
    ]
    return Markdown(f"{' → '.join(percents)} % (stage {at + 1} of {len(percents)})")


def acts(rollout: Rollout) -> list[str]:
    """Return the commands that act on it now, the likeliest first."""
    strategy = argument(rollout.strategy_name)
    undo, look = f"rollout rollback {strategy} {WHY}", f"rollout report {rollout.id}"
    match State(rollout.state):
        case State.AWAITING_APPROVAL:
            return [f"rollout approve {strategy} {WHY}", undo, look]
        case State.AWAITING_DECISION:
            return [*(f"rollout decide {strategy} {choice} {WHY}" for choice in ("extend", "advance")), undo, look]
        case State.PAUSED:
            return [f"rollout resume {strategy} {WHY}", undo, look]
        case State.RUNNING:
            pause = [] if rollout.promoted_at else [f"rollout pause {strategy} {WHY}"]
            return [undo, *pause, look]
        case State.ROLLED_BACK | State.ABORTED:
            return [look, f"rollout verdicts {strategy} --rollout {rollout.id}"]
        case State.COMPLETED:
            return [f"rollout rollback {strategy} --version {argument(rollout.version)} {WHY}", look]


def _percents(progress: Progress) -> tuple[float, ...]:
    return progress.status.stages


def _started(progress: Progress) -> str:
    by = f" by {progress.started_by}" if progress.started_by else ""
    return f"{progress.status.rollout.started_at:%Y-%m-%d %H:%M}{by}"


def _left(span: timedelta | None) -> str | None:
    if span is None:
        return None
    return told(span) if span else "none"


def _ended(rollout: Rollout) -> str:
    return rollout.state.replace("_", " ") if rollout.state in (State.ROLLED_BACK, State.ABORTED) else ""
