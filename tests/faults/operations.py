"""The work that is killed: each operation, the database it begins on, and how it is done again after a restart."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cached_property, partial

from sqlalchemy import Engine

from strategy_core.domain.alerts import DeliveryPace
from strategy_core.domain.audit import Command
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.plan import Plan, read_plan
from strategy_core.domain.user_exclusions import ExclusionKind
from strategy_core.isolation.pool import WorkerPool
from strategy_core.market.synthetic import SyntheticSource
from strategy_core.services.alerts import deliver
from strategy_core.services.drain import drain
from strategy_core.services.live_trades import ingest
from strategy_core.services.positions import flatten, hand_over
from strategy_core.services.race_tick import tick_races
from strategy_core.services.races import start_race
from strategy_core.services.release_times import lift_freeze, set_freeze
from strategy_core.services.rollback import roll_back
from strategy_core.services.rollouts import approve, start_rollout
from strategy_core.services.scheduled_starts import cancel_start, schedule_start, start_due
from strategy_core.services.score import score_outcomes
from strategy_core.services.shadow import run_shadow
from strategy_core.services.tick import tick
from strategy_core.services.user_exclusions import end_exclusions, exclude_users
from strategy_core.services.versions import activate_version, register_version
from tests.builders import DAY, GOLD, HOUR, MONDAY, OWNER, decision_row, put_day, put_decisions, put_version
from tests.endpoint import Endpoint
from tests.services.outbox import channel_to

NOW = MONDAY + 4 * DAY
_DAILY = {"percent": 5, "minimum_time": 86_400, "margins": {"pnl_r": 0.1, "win": 0.05}}
_USUAL = Plan()
_LAST = Plan(stages=_USUAL.stages[-1:], approve_before=())
_ASKING = read_plan(
    {"stages": [_DAILY, {**_DAILY, "percent": 100}], "gates": [{"kind": "errors"}], "maximum_stage_time": 172_800}
)


class World:
    """What operations meet outside the database: a market, a receiver of alerts, versions' worker processes."""

    def __init__(self, receiver: str = "") -> None:
        self.receiver = Endpoint(url=receiver)

    @cached_property
    def market(self) -> SyntheticSource:
        return SyntheticSource((GOLD, "SILVER"), start=MONDAY.replace(month=1, day=1), days=300)

    @cached_property
    def workers(self) -> WorkerPool:
        return WorkerPool()

    def close(self) -> None:
        if "workers" in self.__dict__:
            self.workers.close()


Act = Callable[[Engine, World, datetime], object]


@dataclass(frozen=True)
class Operation:
    """One kind of work.

    Attributes:
        prepare: makes an empty database the one that it begins on.
        again_after: how much later the restarted process does it again.
    """

    prepare: Callable[[Engine], None]
    act: Act
    again_after: timedelta = timedelta()


def pair(engine: Engine) -> None:
    put_version(engine, "1", Status.ACTIVE, recorded=True)
    put_version(engine, "2", recorded=True)
    put_day(engine, MONDAY - DAY, {"1": "buy", "2": "buy"}, {"1": 0.4, "2": 0.4}, signal_hours=range(0, 20, 4))


def ramped(engine: Engine, *, canary_r: float = 0.4, plan: Plan = _USUAL) -> None:
    """Four days of a rollout, whose canary makes *canary_r* a trade."""
    pair(engine)
    start_rollout(engine, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="2", plan=plan)
    for day in range(4):
        worth = {"1": 0.4, "2": canary_r}
        put_day(engine, MONDAY + day * DAY, {"1": "buy", "2": "buy"}, worth, signal_hours=range(0, 20, 2))


def hold(engine: Engine) -> None:
    """Let users open positions of both versions before the rollout, whose gates read later orders alone."""
    at = MONDAY - HOUR
    ingest(engine, [_opened(f"p{number}", str(1 + number % 2), at) for number in range(40)], now=NOW)


def _opened(trade_id: str, version: str, at: datetime) -> dict[str, object]:
    facts = {"trade_id": trade_id, "user_id": f"u-{trade_id}", "strategy_name": "fib_rsi", "version": version}
    return {**facts, "symbol": GOLD, "opened_at": at}


def holding(engine: Engine) -> None:
    ramped(engine)
    hold(engine)


def holding_at_the_last_stage(engine: Engine) -> None:
    at_the_last_stage(engine)
    hold(engine)


def holding_and_bleeding(engine: Engine) -> None:
    bleeding(engine)
    hold(engine)


def holding_and_promoted(engine: Engine) -> None:
    promoted(engine)
    hold(engine)


def at_the_last_stage(engine: Engine) -> None:
    ramped(engine, plan=_LAST)


def bleeding(engine: Engine) -> None:
    ramped(engine, canary_r=-1.0)


def promoted(engine: Engine) -> None:
    at_the_last_stage(engine)
    tick(engine, World().market, now=NOW)


def asked(engine: Engine) -> None:
    """It has passed its first stage, and waits for an approval."""
    pair(engine)
    start_rollout(engine, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="2", plan=_ASKING)
    hours = [MONDAY + hour * HOUR for hour in range(int((NOW - MONDAY) / HOUR))]
    put_decisions(engine, *(decision_row(version, at) for version in ("1", "2") for at in hours))
    tick(engine, World().market, now=NOW)


def freeze(engine: Engine, now: datetime = MONDAY) -> object:
    """Freeze releases until long after NOW, once: a repetition is refused by its key."""
    asked = Command(replace(OWNER, idempotency_key="freeze"), now, "holidays")
    return set_freeze(engine, asked, strategy_name="fib_rsi", ends_at=NOW + 9 * DAY)


def frozen(engine: Engine) -> None:
    """A rollout whose next stage has been earned, frozen since MONDAY."""
    ramped(engine)
    freeze(engine)


def frozen_bleeding(engine: Engine) -> None:
    bleeding(engine)
    freeze(engine)


def scheduled(engine: Engine) -> None:
    """A start was due an hour before NOW."""
    pair(engine)
    schedule(engine, MONDAY)


def frozen_schedule(engine: Engine) -> None:
    scheduled(engine)
    freeze(engine)


def three_strategies(engine: Engine) -> None:
    ramped(engine)
    for name in ("a_first", "ppo_gold"):
        put_version(engine, "1", Status.ACTIVE, strategy_name=name, recorded=True)


def three_frozen(engine: Engine) -> None:
    three_strategies(engine)
    set_freeze(engine, Command(OWNER, MONDAY, "holidays"), strategy_name="*", ends_at=NOW + 9 * DAY)


def opt_out(engine: Engine, now: datetime) -> object:
    """Keep users off the canaries of all strategies."""
    users = ["u1", "u2"]
    return exclude_users(
        engine, Command(OWNER, now, "asked"), strategy_name="*", user_ids=users, kind=ExclusionKind.OPT_OUT
    )


def opted_out(engine: Engine) -> None:
    three_strategies(engine)
    opt_out(engine, MONDAY)


def _race_ticks(engine: Engine, _: World, now: datetime) -> object:
    """Two, as the second one notes what has become of what the first one did."""
    return [tick_races(engine, now=now) for _ in range(2)]


def three_candidates(engine: Engine) -> None:
    pair(engine)
    put_version(engine, "3", recorded=True)


def racing(engine: Engine, *, ends: float | None = None) -> None:
    """Three weeks of two candidates in a race that starts the rollout of its leader, 2. Then 2 turns bad if *ends*."""
    first = NOW - 24 * DAY if ends is None else NOW - 54 * DAY
    put_version(engine, "1", Status.ACTIVE, at=first, recorded=True)
    for version in ("2", "3"):
        put_version(engine, version, at=first, recorded=True)
    command = Command(OWNER, first + DAY)
    start_race(engine, command, strategy_name="fib_rsi", candidates=["2", "3"], plan=_USUAL, starts=True)
    _race_days(engine, first, 21, {"1": 0.1, "2": 0.5, "3": -0.3})
    if ends is not None:
        tick_races(engine, now=first + 24 * DAY)
        _race_days(engine, first + 21 * DAY, 30, {"1": 0.1, "2": ends, "3": -0.3})


def leading_no_more(engine: Engine) -> None:
    racing(engine, ends=-1.0)


def _race_days(engine: Engine, first: datetime, count: int, worth: dict[str, float]) -> None:
    for day in range(count):
        of_day = {version: r + (0.2 if day % 2 else -0.2) * (version != "1") for version, r in worth.items()}
        put_day(engine, first + day * DAY, dict.fromkeys(worth, "buy"), of_day, signal_hours=range(0, 20, 5))


def schedule(engine: Engine, now: datetime) -> object:
    facts = {"strategy_name": "fib_rsi", "version": "2", "plan": _USUAL, "start_at": now + 4 * DAY - HOUR}
    return schedule_start(engine, Command(OWNER, now), **facts)  # type: ignore[arg-type]


def registered(engine: Engine) -> None:
    """Two real versions, of which one serves."""
    register(engine, World(), MONDAY, version="1", status=Status.ACTIVE, hours=6)
    register(engine, World(), MONDAY, version="2", hours=4)


def logged(engine: Engine) -> None:
    registered(engine)
    world = World()
    run_shadow(engine, world.market, world.workers, now=NOW)
    world.close()


def register(
    engine: Engine, world: World, now: datetime, *, version: str = "3", status: Status = Status.SHADOW, hours: int = 5
) -> object:
    return register_version(
        engine,
        Command(OWNER, now),
        world.market,
        strategy_name="clockwork",
        version=version,
        config={"hours": hours},
        entry_point="tests.services.versions_under_test:Clockwork",
        symbols=[GOLD],
        timeframe="1h",
        status=status,
    )


def _shadow_run(engine: Engine, world: World, now: datetime) -> None:
    """Start a worker of each version, once, whose recorded answers are read: every run has the same boundaries."""
    with WorkerPool(at_once=1) as workers:
        run_shadow(engine, world.market, workers, now=now)


def _trades(engine: Engine, world: World, now: datetime) -> object:
    trades = []
    for number in range(20):
        at = MONDAY + number * HOUR
        opened = {"trade_id": f"t{number}", "user_id": f"u{number}", "version": "1", "symbol": GOLD, "opened_at": at}
        opened["strategy_name"] = "fib_rsi"
        trades += [opened, {**opened, "closed_at": at + HOUR, "pnl": 5.0, "risk": 10.0}]
    return ingest(engine, trades, now=now)


def _ticks(engine: Engine, world: World, now: datetime) -> object:
    return tick(engine, world.market, now=now)


OPERATIONS: dict[str, Operation] = {
    "register": Operation(registered, register),
    "register the first, active": Operation(pair, partial(register, version="1", status=Status.ACTIVE)),
    "start a rollout": Operation(
        pair, lambda e, w, now: start_rollout(e, Command(OWNER, now), strategy_name="fib_rsi", version="2", plan=_USUAL)
    ),
    "activate": Operation(
        ramped, lambda e, w, now: activate_version(e, Command(OWNER, now), strategy_name="fib_rsi", version="2")
    ),
    "approve": Operation(asked, lambda e, w, now: approve(e, Command(OWNER, now, "good"), strategy_name="fib_rsi")),
    "tick: advance": Operation(ramped, _ticks),
    "tick: promote": Operation(at_the_last_stage, _ticks),
    "tick: roll back": Operation(bleeding, _ticks),
    "an owner's rollback": Operation(
        ramped, lambda e, w, now: roll_back(e, Command(OWNER, now, "news"), strategy_name="fib_rsi")
    ),
    "freeze": Operation(ramped, lambda e, w, now: freeze(e, now)),
    "lift a freeze": Operation(frozen, lambda e, w, now: lift_freeze(e, Command(OWNER, now, "they are over"), 1)),
    "lift a freeze of all strategies": Operation(
        three_frozen, lambda e, w, now: lift_freeze(e, Command(OWNER, now, "they are over"), 1)
    ),
    "exclude users of all strategies": Operation(three_strategies, lambda e, w, now: opt_out(e, now)),
    "end exclusions of all strategies": Operation(
        opted_out,
        lambda e, w, now: end_exclusions(e, Command(OWNER, now, "asked"), strategy_name="*", user_ids=["u1", "u2"]),
    ),
    "start a race": Operation(
        three_candidates,
        lambda e, w, now: start_race(
            e, Command(OWNER, now), strategy_name="fib_rsi", candidates=["2", "3"], plan=_USUAL
        ),
    ),
    "race ticks: nominate": Operation(racing, _race_ticks),
    "race ticks: the lead is gone": Operation(leading_no_more, _race_ticks),
    "schedule a start": Operation(pair, lambda e, w, now: schedule(e, now)),
    "cancel a scheduled start": Operation(
        scheduled, lambda e, w, now: cancel_start(e, Command(OWNER, now), strategy_name="fib_rsi")
    ),
    "a scheduled start": Operation(scheduled, lambda e, w, now: start_due(e, now=now)),
    "a scheduled start in a freeze": Operation(frozen_schedule, lambda e, w, now: start_due(e, now=now)),
    "tick: held by a freeze": Operation(frozen, _ticks),
    "tick: roll back in a freeze": Operation(frozen_bleeding, _ticks),
    "an owner's rollback in a freeze": Operation(
        frozen, lambda e, w, now: roll_back(e, Command(OWNER, now, "news"), strategy_name="fib_rsi")
    ),
    "an owner's rollback after the promotion": Operation(
        promoted, lambda e, w, now: roll_back(e, Command(OWNER, now, "news"), strategy_name="fib_rsi")
    ),
    "shadow run": Operation(registered, _shadow_run),
    "score": Operation(logged, lambda e, w, now: score_outcomes(e, w.market, now=now)),
    "live trades": Operation(ramped, _trades),
    "tick: advance, positions open": Operation(holding, _ticks),
    "tick: promote, positions open": Operation(holding_at_the_last_stage, _ticks),
    "tick: complete, positions open": Operation(
        holding_and_promoted, lambda e, w, now: tick(e, w.market, now=now + 8 * DAY)
    ),
    "tick: roll back, positions open": Operation(holding_and_bleeding, _ticks),
    "an owner's rollback, positions open": Operation(
        holding, lambda e, w, now: roll_back(e, Command(OWNER, now, "news"), strategy_name="fib_rsi")
    ),
    "an owner's rollback after the promotion, positions open": Operation(
        holding_and_promoted, lambda e, w, now: roll_back(e, Command(OWNER, now, "news"), strategy_name="fib_rsi")
    ),
    "activate, positions open": Operation(
        holding, lambda e, w, now: activate_version(e, Command(OWNER, now), strategy_name="fib_rsi", version="2")
    ),
    "hand over": Operation(
        holding,
        lambda e, w, now: hand_over(e, Command(OWNER, now), strategy_name="fib_rsi", version="2", to_version="1"),
    ),
    "flatten": Operation(
        holding, lambda e, w, now: flatten(e, Command(OWNER, now), strategy_name="fib_rsi", version="2")
    ),
    "drain": Operation(holding, lambda e, w, now: drain(e, w.market, now=now)),
    "alerts": Operation(
        promoted, lambda e, w, now: deliver(e, [channel_to(w.receiver)], now=now), again_after=DeliveryPace().lease
    ),
}
