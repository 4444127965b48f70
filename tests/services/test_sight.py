"""A rollout that cannot see holds, tells and falls at its limit; no fault of one keeps another from its ruling."""

from datetime import datetime

from sqlalchemy import Engine

from strategy_core.domain.audit import Command
from strategy_core.domain.errors import InvalidCandles
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.plan import Plan
from strategy_core.domain.ramp import Step
from strategy_core.market.synthetic import SyntheticSource
from strategy_core.services.rollouts import start_rollout
from strategy_core.services.tick import TickResult, tick
from strategy_core.store import alerts, rollouts
from strategy_core.store.engine import reading
from tests.builders import DAY, HOUR, MONDAY, OWNER, decision_row, put_decisions, put_version
from tests.services.ramping import days, newest, ruled


def test_missing_candles_hold_then_roll_back(ramped: Engine, market: SyntheticSource) -> None:
    now = days(ramped, MONDAY, 1)
    blind = ruled(tick(ramped, market, now=now + 6 * HOUR))
    later = ruled(tick(ramped, market, now=now + 29 * HOUR))
    at_last = ruled(tick(ramped, market, now=now + 30 * HOUR))

    assert (blind[0], later[0], at_last[0]) == (Step.HOLD, Step.HOLD, Step.ROLL_BACK)
    assert blind[1].startswith("freshness: candle 2026-03-03 03:00 UTC is due")
    with reading(ramped) as session:
        kinds = [alert.kind for alert in alerts.find_alerts(session)]
    assert kinds == ["rollout.started", "rollout.blind", "rollout.rolled_back"]


def test_a_closed_market_is_not_blind(ramped: Engine, market: SyntheticSource) -> None:
    """Friday's last candle is the newest that is due until Sunday evening in New York."""
    days(ramped, MONDAY, 5)

    assert not _blind(tick(ramped, market, now=MONDAY + 6 * DAY))


def _blind(ticked: list[TickResult]) -> bool:
    return any(one.ruling is not None and one.ruling.blind for one in ticked)


def test_a_feed_that_fails_is_blind_and_recovers(ramped: Engine, market: SyntheticSource) -> None:
    class Unplugged(SyntheticSource):
        def expected_at(self, symbol: str, now: datetime) -> datetime | None:
            raise InvalidCandles("feed", "connection refused")

    now = days(ramped, MONDAY, 1)
    assert _blind(tick(ramped, Unplugged(("GOLD",)), now=now))
    assert newest(ramped).blind_since == now
    assert not _blind(tick(ramped, market, now=now))
    assert newest(ramped).blind_since is None


def test_a_rollout_whose_ticks_fail_is_blind_and_falls_at_the_limit(ramped: Engine, market: SyntheticSource) -> None:
    """Whatever keeps a tick from its evidence, users must not stay on a canary that nobody can judge."""
    put_version(ramped, "1", Status.ACTIVE, strategy_name="broken", timeframe="weekly")
    put_version(ramped, "2", strategy_name="broken", timeframe="weekly")
    start_rollout(ramped, Command(OWNER, MONDAY), strategy_name="broken", version="2", plan=Plan())
    ticks = [tick(ramped, market, now=MONDAY + hour * HOUR)[0] for hour in (1, 2, 24, 25)]

    with reading(ramped) as session:
        kinds = [alert.kind for alert in alerts.find_alerts(session, "broken")]
        percent = rollouts.get_canary(session, "broken").rollout_percent
    assert [each.ruling and each.ruling.step for each in ticks] == [Step.HOLD, Step.HOLD, Step.HOLD, Step.ROLL_BACK]
    assert (kinds, percent) == (["rollout.started", "rollout.blind", "rollout.rolled_back"], 0.0)


def test_without_new_outcomes_it_is_blind_however_good_the_old_ones_were(
    ramped: Engine, market: SyntheticSource
) -> None:
    """Decisions go on, scoring has stopped: what was booked before says nothing of now."""
    now = days(ramped, MONDAY, 4)
    assert ruled(tick(ramped, market, now=now))[0] is Step.ADVANCE
    for day in range(4, 8):
        at = MONDAY + day * DAY
        for version in ("1", "2"):
            rows = (decision_row(version, at + hour * HOUR, "buy" if hour % 6 == 0 else "hold") for hour in range(24))
            put_decisions(ramped, *rows)

    step, reason = ruled(tick(ramped, market, now=MONDAY + 8 * DAY))

    assert step is Step.HOLD
    assert "no outcome of 2 on GOLD 2026-03-06 00:00 UTC yet" in reason
    assert newest(ramped).stage_index == 1


def test_a_weekend_advances_nothing(ramped: Engine, market: SyntheticSource) -> None:
    """Friday's evidence has moved the ramp on Friday; on Saturday nothing has been decided at the new stage."""
    now = days(ramped, MONDAY, 5)
    assert ruled(tick(ramped, market, now=now))[0] is Step.ADVANCE

    step, reason = ruled(tick(ramped, market, now=now + DAY))

    assert step is Step.HOLD
    assert "no candle has been decided at this stage yet" in reason


def test_a_fault_of_one_rollout_or_of_the_feed_keeps_no_breach_from_being_rolled_back(
    ramped: Engine, market: SyntheticSource
) -> None:
    class Broken(SyntheticSource):
        def expected_at(self, symbol: str, now: datetime) -> datetime | None:
            raise OSError("disk failure")

    put_decisions(ramped, *(decision_row("1", MONDAY + hour * HOUR) for hour in range(5)))

    assert ruled(tick(ramped, Broken(("GOLD",)), now=MONDAY + 5 * HOUR))[0] is Step.ROLL_BACK


def test_what_keeps_one_rollout_from_a_ruling_keeps_no_other(ramped: Engine, market: SyntheticSource) -> None:
    put_version(ramped, "1", Status.ACTIVE, strategy_name="broken", timeframe="weekly")
    put_version(ramped, "2", strategy_name="broken", timeframe="weekly")
    start_rollout(ramped, Command(OWNER, MONDAY), strategy_name="broken", version="2", plan=Plan())

    broken, sound = tick(ramped, market, now=MONDAY + HOUR)

    assert broken.ruling is not None
    assert broken.ruling.blind
    assert "'weekly' is not a timeframe" in broken.error
    assert (sound.ruling is not None, sound.error) == (True, "")
