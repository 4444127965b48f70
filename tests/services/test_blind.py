"""Whatever the cause of blindness: it holds, tells once, and at the plan's limit takes the users off."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

import pytest
from sqlalchemy import Engine

from strategy_core.domain.audit import Command
from strategy_core.domain.errors import EvidenceUnavailable
from strategy_core.domain.plan import read_plan
from strategy_core.domain.ramp import Ruling, Step
from strategy_core.market.source import AbsentSource, CandleSource
from strategy_core.market.synthetic import SyntheticSource
from strategy_core.observe.prometheus import Prometheus
from strategy_core.services.rollouts import start_rollout
from strategy_core.services.sample_metrics import sample_metrics
from strategy_core.services.tick import tick
from strategy_core.store import rollouts
from strategy_core.store.alerts import find_alerts
from strategy_core.store.engine import reading
from strategy_core.store.tables import Rollout
from tests.builders import DAY, HOUR, MONDAY, OWNER, decision_row, put_decisions, put_pair
from tests.endpoint import Endpoint, vector
from tests.prepared import prepared

METRIC = {"kind": "metric", "metric": "slippage", "query": 'slippage{version="$canary"}', "maximum": 3}
PLAN = read_plan({"gates": [{"kind": "errors"}, METRIC | {"minimum_samples": 1}]})
NOBODY = "http://127.0.0.1:1"  # a port on which nothing may listen
GONE = AbsentSource("gold.csv", "1h", EvidenceUnavailable("gold.csv: no such file or folder"))


@dataclass
class World:
    """What surrounds a rollout; each part can fail on its own."""

    engine: Engine
    feed: CandleSource
    endpoint: Endpoint
    prometheus: Prometheus
    shadow_runs: bool = True
    sampler_runs: bool = True

    def look(self, now: datetime) -> Ruling:
        """Let pass what happens in an hour before *now*, as far as it still does, and tick."""
        if self.shadow_runs:
            hours = [MONDAY + hour * HOUR for hour in range(int((now - MONDAY) / HOUR))]
            put_decisions(self.engine, *(decision_row(version, at) for version in ("1", "2") for at in hours))
        if self.sampler_runs:
            sample_metrics(self.engine, self.prometheus, now=now)
        (ticked,) = tick(self.engine, self.feed, now=now)
        assert ticked.ruling is not None, ticked.error
        return ticked.ruling


@pytest.fixture
def world(engine: Engine, market: SyntheticSource, endpoint: Endpoint) -> World:
    """Version 2 in the first stage against version 1 since Monday; a day later everything is seen."""
    prepared(engine, start_with_a_metric)
    world = World(engine, market, endpoint, Prometheus(endpoint.url))
    assert not world.look(MONDAY + HOUR).blind
    return world


def start_with_a_metric(engine: Engine) -> None:
    put_pair(engine)
    start_rollout(engine, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="2", plan=PLAN)


def no_candles(world: World) -> None:
    world.feed = GONE


def stale_candles(world: World) -> None:
    world.shadow_runs = False


def endpoint_down(world: World) -> None:
    world.prometheus = Prometheus(NOBODY)


def nan(world: World) -> None:
    world.endpoint.body = vector("NaN")


def no_series(world: World) -> None:
    world.endpoint.body = vector()


def no_sampler(world: World) -> None:
    world.sampler_runs = False


def no_address(world: World) -> None:
    world.prometheus = Prometheus(None)


CAUSES = {
    no_candles: "freshness: gold.csv: no such file or folder",
    stale_candles: "freshness: candle 2026-03-02 05:00 UTC is due, but the newest decided is 2026-03-02 00:00",
    endpoint_down: "metric:slippage: no value: cannot be reached: ",
    nan: "metric:slippage: no value: the value is nan",
    no_series: "metric:slippage: no value: no series matches the query",
    no_sampler: "metric:slippage: the newest sample is of 2026-03-02 01:00:00 UTC",
    no_address: "metric:slippage: no value: ROLLOUT_PROMETHEUS_URL is not set",
}
by_cause = pytest.mark.parametrize(("strike", "reason"), CAUSES.items(), ids=lambda it: getattr(it, "__name__", ""))


@by_cause
def test_it_holds_tells_once_and_at_the_limit_rolls_back(
    world: World, strike: Callable[[World], None], reason: str
) -> None:
    since = MONDAY + 8 * HOUR
    strike(world)
    rulings = [world.look(since + hours * HOUR) for hours in (0, 1, 23, 24)]

    assert [ruling.step for ruling in rulings] == [Step.HOLD, Step.HOLD, Step.HOLD, Step.ROLL_BACK]
    assert all(ruling.blind for ruling in rulings)
    assert rulings[0].reason.startswith(reason)
    with reading(world.engine) as session:
        alerts = find_alerts(session)
        assert rollouts.get_canary(session, "fib_rsi").rollout_bp == 0
        assert rollouts.list_rollouts(session)[0].state == "rolled_back"
    assert [alert.kind for alert in alerts] == ["rollout.started", "rollout.blind", "rollout.rolled_back"]
    assert reason in alerts[1].text


@by_cause
def test_sight_that_returns_in_time_ends_it(world: World, strike: Callable[[World], None], reason: str) -> None:
    sound = World(world.engine, world.feed, world.endpoint, world.prometheus)
    body = world.endpoint.body
    strike(world)
    assert world.look(MONDAY + 8 * HOUR).blind
    world.endpoint.body = body

    assert not sound.look(MONDAY + 20 * HOUR).blind
    assert newest(world.engine).blind_since is None
    assert newest(world.engine).state == "running"


@by_cause
def test_it_advances_nobody_though_everything_else_has_passed(
    world: World, strike: Callable[[World], None], reason: str
) -> None:
    """The stage's minimum time is over, and every other gate passes."""
    strike(world)

    assert world.look(MONDAY + DAY + HOUR).step is Step.HOLD
    assert newest(world.engine).stage_index == 0


def test_seeing_it_advances(world: World) -> None:
    """What the tests above hold back would move, were it seen."""
    assert world.look(MONDAY + DAY + HOUR).step is Step.ADVANCE


def test_a_tick_that_comes_late_ends_no_blindness(world: World) -> None:
    """It asks which candles were due by its own clock, hours ago: then each late one would begin the limit anew."""
    stale_candles(world)
    assert world.look(MONDAY + 8 * HOUR).blind

    world.look(MONDAY + 2 * HOUR)

    assert newest(world.engine).blind_since == MONDAY + 8 * HOUR


def newest(engine: Engine) -> Rollout:
    with reading(engine) as session:
        return rollouts.list_rollouts(session)[0]
