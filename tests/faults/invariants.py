"""What must hold whenever a process was killed: each invariant reads the database, and returns what is wrong in it."""

import re
from collections import Counter
from collections.abc import Callable, Mapping

from sqlalchemy import Engine, Integer, func, select, text
from sqlmodel import Session, SQLModel, col

from strategy_core.domain import race
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.plan import read_plan
from strategy_core.domain.race_days import day_of
from strategy_core.domain.ramp import ENDED, State
from strategy_core.domain.slot_ledger import read_ledger
from strategy_core.services.audit import verify_trail
from strategy_core.services.evidence import recompute
from strategy_core.store import audit, evidence, positions, races, release_times, rollouts, versions
from strategy_core.store.engine import reading
from strategy_core.store.tables import AlertOutbox, Counted, DecisionTally, GateVerdict, LiveTrade, StrategyRow, Tally
from strategy_core.store.tables import ShadowDecisionLog as Log
from tests.builders import DAY

Picture = Mapping[str, Counter[str]]
Invariant = Callable[[Engine, Picture, Picture], object]

_RANDOM = re.compile(r"[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}")
_NUMBER = re.compile(
    r"'id': \d+"
)  # of a freeze, in its event. PostgreSQL skips the one of a transaction that was undone
_OTHERWISE = {"hash", "previous_hash", "audit_head", "duration_ms", "alert_id"}  # they follow from ids and clocks
_OF_DELIVERIES = {"attempts", "claimed_until", "claimed_by", "sent_at", "due_at", "next_try_at"}
_RELEASES = {"start_rollout", "advance", "promote", "activate_version", "activate_canary"}
_EVIDENCE = (
    *("shadow_decision_log", "outcome", "equity_mark", "gate_verdict", "booked_slot", "metric_sample"),
    *("live_trade", "position_change", "position_exit", "audit_event", "alert_outbox", "comparison_report"),
)


def picture(engine: Engine) -> Picture:
    """Return every row of every table but for its ids and the times that a restart moves."""
    found: dict[str, Counter[str]] = {}
    with reading(engine) as session:
        names = {str(one.id): f"{one.strategy_name} {one.version}" for one in rollouts.list_rollouts(session)}
        for table in SQLModel.metadata.sorted_tables:
            left_out = _OTHERWISE | (_OF_DELIVERIES if table.name == "alert_delivery" else set())
            counted = [each for each in table.columns if each.primary_key and isinstance(each.type, Integer)]
            columns = [each for each in table.columns if each.name not in left_out and each not in counted]
            rows = session.execute(select(*columns)).all() if columns else []
            found[table.name] = Counter(
                _NUMBER.sub("'id': ·", _RANDOM.sub(lambda match: names.get(match[0], "·"), repr(tuple(row))))
                for row in rows
            )
    return found


def differences(one: Picture, other: Picture) -> list[str]:
    """Return the tables in which two pictures differ, each with a row that only one of them has."""
    return [
        f"{name}: {next(iter((one[name] - other[name]) + (other[name] - one[name])))}"
        for name in one
        if one[name] != other[name]
    ]


def one_active(engine: Engine, *_: Picture) -> object:
    with reading(engine) as session:
        by_strategy = {
            name: Counter(version.status for version in versions.list_versions(session, name))
            for name in versions.strategy_names(session)
        }
    return {name: has for name, has in by_strategy.items() if has["active"] != 1 or has["canary"] > 1}


def canary_as_its_rollout(engine: Engine, *_: Picture) -> object:
    """The share of users on the canary is that of the open rollout's stage, and 0 without a canary."""
    wrong = []
    with reading(engine) as session:
        for name in versions.strategy_names(session):
            canary, pointer = versions.with_status(session, name, Status.CANARY), rollouts.find_canary(session, name)
            rollout = rollouts.open_rollout(session, name)
            expected = 0
            if rollout is not None and rollout.promoted_at is None:
                expected = read_plan(rollout.plan).stages[rollout.stage_index].percent_bp
                if canary is None or (canary.version, pointer and pointer.version) != (rollout.version,) * 2:
                    wrong.append(f"{name}: the rollout's version is not the canary")
            if (pointer.rollout_bp if pointer else 0) != expected:
                wrong.append(f"{name}: {pointer} where {expected} was expected")
            if rollout is None and canary is not None:
                wrong.append(f"{name}: a canary without a rollout")
    return wrong


def one_step_at_most(engine: Engine, before: Picture, now: Picture) -> object:
    """One operation leaves one audit event a strategy, and moves a rollout by one stage, or not at all."""
    with reading(engine) as session:
        names = versions.strategy_names(session)
    added = [row.partition("{")[0] for row in (now["audit_event"] - before["audit_event"]).elements()]  # its names
    return {name: events for name in names if (events := sum(f"'{name}'" in row for row in added)) > 1}


def chain_intact(engine: Engine, *_: Picture) -> object:
    verified = verify_trail(engine)
    return None if verified.holds else verified


def generation_is_the_newest_event(engine: Engine, *_: Picture) -> object:
    with reading(engine) as session:
        newest = dict.fromkeys(versions.strategy_names(session), 0)
        for event in audit.events(session):
            newest[event.strategy_name] = max(newest[event.strategy_name], event.position)
        found = session.execute(select(col(StrategyRow.name), col(StrategyRow.generation))).all()
        stands = {row.name: row.generation for row in found}
    return None if stands == newest else (stands, newest)


def tallies_as_recounted(engine: Engine, *_: Picture) -> object:
    with reading(engine) as session:
        stands, rows = _tallies(session), _recount(session)
    return None if stands == rows else (stands - rows, rows - stands)


def _tallies(session: Session) -> Counter[tuple[str, ...]]:
    said = session.execute(select(*DecisionTally.__table__.c)).all()  # type: ignore[attr-defined]
    counted: Counter[tuple[str, ...]] = Counter(
        {
            ("decision", row.strategy_name, row.version, row.symbol, what): getattr(row, what)
            for row in said
            for what in ("buy", "sell", "hold", "error")
        }
    )
    for row in session.execute(select(*Tally.__table__.c)).all():  # type: ignore[attr-defined]
        named = (row.name, row.detail) if row.what != Counted.ROLLBACK else ("", "")  # the cause is not in the trail
        counted[row.what, row.strategy_name, *named] += row.total
    return +counted


def _recount(session: Session) -> Counter[tuple[str, ...]]:
    counted: Counter[tuple[str, ...]] = Counter()
    key = (col(Log.strategy_name), col(Log.version), col(Log.symbol), col(Log.decision), col(Log.error_kind))
    for name, version, symbol, said, kind, times in session.execute(select(*key, func.count()).group_by(*key)):
        counted["decision", name, version, symbol, said] += times
        if kind:
            counted[Counted.ERROR.value, name, version, kind] += times
    for event in audit.events(session):
        if event.after.get("active") not in (None, event.before.get("active")):
            counted[Counted.ACTIVATION.value, event.strategy_name, event.after["active"], ""] += 1
    strategies = {rollout.id: rollout.strategy_name for rollout in rollouts.list_rollouts(session)}
    for row in session.execute(select(*GateVerdict.__table__.c)).all():  # type: ignore[attr-defined]
        counted[Counted.VERDICT.value, strategies[row.rollout_id], row.gate, row.verdict] += 1
    for event in audit.events(session):
        if event.action == "roll_back":
            counted[Counted.ROLLBACK.value, event.strategy_name, "", ""] += 1
    return counted


def no_evidence_lost(engine: Engine, before: Picture, now: Picture) -> object:
    return {name: lost for name in _EVIDENCE if (lost := before[name] - now[name])}


def no_evidence_doubled(engine: Engine, before: Picture, now: Picture) -> object:
    return {name: twice for name in _EVIDENCE if (twice := [row for row, times in now[name].items() if times > 1])}


def book_as_its_slots(engine: Engine, *_: Picture) -> object:
    """A rollout's totals follow from the slots it has booked, which stand in one row of positions."""
    wrong = []
    with reading(engine) as session:
        for rollout in rollouts.list_rollouts(session):
            row, booked = evidence.get_book(session, rollout.id), evidence.booked(session, rollout.id)
            if [each.position for each in booked] != list(range(row.slots)):
                wrong.append(f"{row.slots} slots counted, {len(booked)} booked")
            totals = read_ledger(row.totals.get("book", {}))
            if totals is not None and totals.totals != recompute(session, rollout):
                wrong.append("totals are not those of the slots")
    return wrong


def ended_is_over(engine: Engine, *_: Picture) -> object:
    """A rollout has an end time exactly if it has ended, and an ended one routes no user to its canary."""
    with reading(engine) as session:
        found = rollouts.list_rollouts(session)
    return [one.state for one in found if (State(one.state) in ENDED) is (one.ended_at is None)]


def a_freeze_holds_releases(engine: Engine, *_: Picture) -> object:
    """No event within a freeze gives a version more users. Rollbacks are not among them."""
    with reading(engine) as session:
        freezes = release_times.list_freezes(session)
        return [
            (event.action, event.at)
            for event in audit.events(session)
            for each in freezes
            if event.action in _RELEASES
            and event.strategy_name == each.strategy_name
            and each.starts_at <= event.at < each.until
            and each.set_at < event.at
        ]


def alerts_by_key(engine: Engine, *_: Picture) -> object:
    with reading(engine) as session:
        keys = Counter(session.execute(select(col(AlertOutbox.dedupe_key))).scalars().all())
    return [key for key, times in keys.items() if times > 1]


def positions_have_managers(engine: Engine, *_: Picture) -> object:
    """Each open position has one manager that still decides, and there are as many of them as open trades."""
    wrong: list[str] = []
    with reading(engine) as session:
        status = {(each.strategy_name, each.version): each.status for each in versions.list_versions(session)}
        found = {each.trade_id: each for each in positions.find_positions(session, None)}
        trades = session.execute(select(col(LiveTrade.trade_id), col(LiveTrade.state))).all()
    wrong += [
        f"{each.trade_id} is managed by {each.manager}"
        for each in found.values()
        if status.get((each.strategy_name, str(each.manager)), Status.RETIRED) == Status.RETIRED
    ]
    closed = {trade for trade, state in trades if state == "closed"}
    if found.keys() != {trade for trade, state in trades if state == "open"} - closed:
        wrong.append(f"{len(found)} open positions are not the open trades")
    return wrong


def database_sound(engine: Engine, *_: Picture) -> object:
    """Foreign keys are valid and SQLite's file is intact. PostgreSQL checks foreign keys at each statement."""
    if engine.dialect.name != "sqlite":
        return None
    with engine.connect() as connection:
        checked = connection.execute(text("PRAGMA integrity_check")).scalar_one()
        astray = connection.execute(text("PRAGMA foreign_key_check")).all()
    return None if checked == "ok" and not astray else (checked, astray)


def races_as_recounted(engine: Engine, _before: Picture, _now: Picture) -> str:
    """The sums of a race follow from the decision log, each day stands once, and at most one rollout is its own."""
    with reading(engine) as session:
        for found in races.list_races(session):
            names = [each.version for each in races.entries_of(session, found.id)]
            pairs, day = race.begin(len(names)), found.first_day
            for standing in races.standings_of(session, found.id):
                if standing.day != day:
                    return f"{day:%Y-%m-%d} is missing"
                decided = races.read_decided(session, found.strategy_name, names, start=day, end=day + DAY)
                pairs, day = race.add_day(pairs, day_of(decided, names)), day + DAY
            if day != found.next_day:
                return f"{day:%Y-%m-%d} is the next day, and {found.next_day:%Y-%m-%d} is stored"
            if pairs.stored() != found.pairs:
                return "the sums of its pairs are not those of its days"
    return ""


INVARIANTS: tuple[Invariant, ...] = (
    one_active,
    canary_as_its_rollout,
    one_step_at_most,
    chain_intact,
    generation_is_the_newest_event,
    tallies_as_recounted,
    no_evidence_lost,
    no_evidence_doubled,
    book_as_its_slots,
    ended_is_over,
    a_freeze_holds_releases,
    alerts_by_key,
    positions_have_managers,
    races_as_recounted,
    database_sound,
)


def violations(engine: Engine, before: Picture, now: Picture) -> list[str]:
    """Return what does not hold, one line for each invariant."""
    return [f"{each.__name__}: {wrong}" for each in INVARIANTS if (wrong := each(engine, before, now))]
