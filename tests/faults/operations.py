"""The work that is killed: each operation, the database it begins on, and how it is done again after a restart."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property, partial

from sqlalchemy import Engine

from strategy_core.domain.alerts import DeliveryPace
from strategy_core.domain.audit import Command
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.plan import Plan, read_plan
from strategy_core.isolation.pool import WorkerPool
from strategy_core.market.synthetic import SyntheticSource
from strategy_core.services.alerts import deliver
from strategy_core.services.live_trades import ingest
from strategy_core.services.rollback import roll_back
from strategy_core.services.rollouts import approve, start_rollout
from strategy_core.services.score import score_outcomes
from strategy_core.services.shadow import run_shadow
from strategy_core.services.tick import tick
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
    "approve": Operation(asked, lambda e, w, now: approve(e, Command(OWNER, now), strategy_name="fib_rsi")),
    "tick: advance": Operation(ramped, _ticks),
    "tick: promote": Operation(at_the_last_stage, _ticks),
    "tick: roll back": Operation(bleeding, _ticks),
    "an owner's rollback": Operation(
        ramped, lambda e, w, now: roll_back(e, Command(OWNER, now, "news"), strategy_name="fib_rsi")
    ),
    "an owner's rollback after the promotion": Operation(
        promoted, lambda e, w, now: roll_back(e, Command(OWNER, now, "news"), strategy_name="fib_rsi")
    ),
    "shadow run": Operation(registered, _shadow_run),
    "score": Operation(logged, lambda e, w, now: score_outcomes(e, w.market, now=now)),
    "live trades": Operation(ramped, _trades),
    "alerts": Operation(
        promoted, lambda e, w, now: deliver(e, [channel_to(w.receiver)], now=now), again_after=DeliveryPace().lease
    ),
}
