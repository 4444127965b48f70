"""Ticks and candles that do not come are told of once an episode, whatever else goes on."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from sqlalchemy import Engine

from strategy_core.domain.alerts import ClockCheck
from strategy_core.domain.audit import Command
from strategy_core.domain.errors import EvidenceUnavailable
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.plan import Plan
from strategy_core.market.files import FileSource
from strategy_core.market.source import AbsentSource, CandleSource, ReplaySource
from strategy_core.market.synthetic import SyntheticSource
from strategy_core.observe.metrics import exposition
from strategy_core.services.alerts import FEED, alert_message, report_faults
from strategy_core.services.rollback import roll_back
from strategy_core.services.rollouts import start_rollout
from strategy_core.services.tick import tick
from strategy_core.services.watchdog import (
    StaleSymbol,
    feed_faults,
    find_overdue,
    watch_feed,
    watch_shadow,
    watch_ticks,
)
from tests.builders import DAY, GOLD, HOUR, MONDAY, OWNER, decision_row, put_decisions, put_version
from tests.services.outbox import outbox

MINUTE = timedelta(minutes=1)
OVERDUE = 10 * MINUTE


def overdue_alerts(engine: Engine) -> list[str]:
    return [alert.text for alert in outbox(engine) if alert.kind == "rollout.tick_overdue"]


def test_a_rollout_without_ticks_is_told_of_once_an_episode(ramped: Engine, market: SyntheticSource) -> None:
    for minute in range(0, 40):
        watch_ticks(ramped, now=MONDAY + minute * MINUTE, overdue=OVERDUE)
    tick(ramped, market, now=MONDAY + 40 * MINUTE)
    for minute in range(40, 60):
        watch_ticks(ramped, now=MONDAY + minute * MINUTE, overdue=OVERDUE)

    assert overdue_alerts(ramped) == [
        f"fib_rsi 2 was last ticked at {at} UTC: its gates do not run"
        for at in ("2026-03-02 00:00", "2026-03-02 00:40")
    ]
    (first, _) = (alert for alert in outbox(ramped) if alert.kind == "rollout.tick_overdue")
    assert (first.severity, first.at) == ("critical", MONDAY + OVERDUE)
    assert alert_message(first).body.splitlines()[1:3] == [
        "users: 5 % get it; for 10 min, since 2026-03-02 00:00 UTC",
        "run now: rollout tick",
    ]


def test_a_rollout_that_is_ticked_or_over_is_not_told_of(ramped: Engine, market: SyntheticSource) -> None:
    tick(ramped, market, now=MONDAY + HOUR)
    assert watch_ticks(ramped, now=MONDAY + HOUR + 9 * MINUTE, overdue=OVERDUE) == []
    roll_back(ramped, Command(OWNER, MONDAY + HOUR, "over"), strategy_name="fib_rsi")

    assert watch_ticks(ramped, now=MONDAY + DAY, overdue=OVERDUE) == []
    assert overdue_alerts(ramped) == []


def test_a_last_tick_that_lies_ahead_is_an_alert_about_clocks(ramped: Engine, market: SyntheticSource) -> None:
    """Missing ticks cannot be seen until the true time has come so far. But none is known to be missing."""
    tick(ramped, market, now=MONDAY + 3 * DAY)

    watch_ticks(ramped, now=MONDAY + HOUR, overdue=OVERDUE)

    assert overdue_alerts(ramped) == []
    (alert,) = (each for each in outbox(ramped) if each.kind == "clock.disagrees")
    assert (alert.severity, alert.text) == (
        "critical",
        "whether fib_rsi 2 is ticked cannot be seen: clock disagrees: the database has a time of 2026-03-05 00:00 UTC, "
        "and this clock shows 2026-03-02 01:00 UTC",
    )
    metrics = exposition(ramped, now=MONDAY + 2 * DAY)[0].decode()
    assert 'rollout_tick_age_seconds{strategy="fib_rsi",version="2"} 86400' in metrics


def test_a_clock_that_is_known_to_be_wrong_calls_nothing_late(ramped: Engine) -> None:
    wrong = ClockCheck("clock disagrees: ROLLOUT_REPLAY_FROM shows another time")

    assert watch_ticks(ramped, now=MONDAY + DAY, overdue=OVERDUE, clock=wrong) == []
    assert find_overdue(ramped, now=MONDAY + DAY, overdue=OVERDUE, clock=wrong) == []
    assert find_overdue(ramped, now=MONDAY + DAY, overdue=OVERDUE) == [
        "fib_rsi 2 was last ticked at 2026-03-02 00:00 UTC: its gates do not run"
    ]
    assert [alert.kind for alert in outbox(ramped)] == ["rollout.started"]


class Still(SyntheticSource):
    """A feed that stands still from some moment on, and knows that it should not."""

    stops = MONDAY + 3 * HOUR

    def candles(
        self, symbol: str, *, closed_by: datetime, since: datetime | None = None, bars: int | None = None
    ) -> pd.DataFrame:
        return super().candles(symbol, closed_by=min(closed_by, self.stops), since=since, bars=bars)


@pytest.fixture
def still() -> Still:
    return Still((GOLD, "SILVER"), start=MONDAY.replace(month=1, day=1), days=300)


def test_a_feed_that_stands_still_is_told_of_once_an_episode(engine: Engine, still: Still) -> None:
    put_version(engine, "1", Status.ACTIVE)
    put_version(engine, "2", symbols=[GOLD])
    start_rollout(engine, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="2", plan=Plan())

    for minute in range(0, 10 * 60, 7):
        watch_feed(engine, still, now=MONDAY + minute * MINUTE)

    (alert,) = (each for each in outbox(engine) if each.kind == "feed.stale")
    assert alert.severity == "warning"
    assert alert.text == "the GOLD candle 2026-03-02 03:00 UTC is due, its newest is 2026-03-02 02:00"
    assert alert.at > MONDAY + 6 * HOUR - 7 * MINUTE
    assert alert_message(alert).title == "[warning] fib_rsi 2: the feed is stale"


def test_a_row_that_waits_for_too_long_is_named_and_the_candles_before_it_are_decided_on(
    engine: Engine, tmp_path: Path
) -> None:
    hours = [MONDAY - 200 * HOUR + hour * HOUR for hour in range(204)]
    rows = [f"{hour.isoformat()},{2000 + at % 7},{2010},{1990},{2000 + at % 5}" for at, hour in enumerate(hours)]
    (tmp_path / "GOLD.csv").write_text("\n".join(["timestamp,open,high,low,close", *rows[:-1], rows[-1][:-12]]))
    put_version(engine, "1", Status.ACTIVE, at=MONDAY)
    source = ReplaySource(FileSource(tmp_path / "GOLD.csv"), now=MONDAY + 6 * HOUR)

    candles = source.candles(GOLD, closed_by=MONDAY + 6 * HOUR)
    on_time = watch_feed(engine, source, now=MONDAY + 5 * HOUR)
    watch_feed(engine, source, now=MONDAY + 6 * HOUR)

    assert (candles.index[-1], on_time) == (MONDAY + 2 * HOUR, [])
    (alert,) = (each for each in outbox(engine) if each.kind == "feed.stale")
    assert alert.text.startswith(
        "the GOLD candle 2026-03-02 03:00 UTC is due, its newest is 2026-03-02 02:00; the next one waits: "
    )
    assert alert.text.endswith("GOLD.csv, row 205: low is nan; a price is a number above zero")


def test_a_feed_that_is_no_later_than_it_may_be_is_none_to_tell_of(engine: Engine, market: CandleSource) -> None:
    put_version(engine, "1", Status.ACTIVE, symbols=[GOLD, "SILVER"])

    for hour in range(0, 7 * 24):
        assert watch_feed(engine, market, now=MONDAY + hour * HOUR) == []


@pytest.mark.parametrize(("many", "strategies"), [(20, 6), pytest.param(500, 10, marks=pytest.mark.full)])
def test_a_lost_feed_is_three_alerts_however_many_symbols_and_strategies(
    engine: Engine, many: int, strategies: int
) -> None:
    """Each strategy has an open rollout, which turns blind. One alert a symbol and strategy would be 5,000."""
    symbols = [f"S{number:03}" for number in range(many)]
    names = [f"strategy-{number}" for number in range(strategies)]
    for name in names:
        put_version(engine, "1", Status.ACTIVE, strategy_name=name, symbols=symbols, at=MONDAY)
        put_version(engine, "2", strategy_name=name, symbols=symbols, at=MONDAY)
        start_rollout(engine, Command(OWNER, MONDAY), strategy_name=name, version="2", plan=Plan())
    decide(engine, names, symbols, MONDAY + 2 * HOUR)
    started = len(outbox(engine))
    feed = Flat(symbols, until=MONDAY + 3 * HOUR)

    def minute_of_six(minute: int) -> None:
        now = MONDAY + 6 * HOUR + minute * MINUTE
        tick(engine, feed, now=now)
        watch_shadow(engine, feed, now=now, overdue=OVERDUE)
        watch_feed(engine, feed, now=now)

    for minute in (-30, 0, 1, 30):
        minute_of_six(minute)
    feed.until = MONDAY + DAY
    decide(engine, names, symbols, MONDAY + 5 * HOUR)
    for minute in (31, 39, 40, 50):
        minute_of_six(minute)

    blind, stale, over = outbox(engine)[started:]
    assert [(alert.kind, alert.severity) for alert in (blind, stale, over)] == [
        ("rollout.blind", "warning"),
        ("feed.stale", "warning"),
        ("incident.ended", "info"),
    ]
    affected = (
        f"{many} symbols (S000, S001, S002, S003, S004 and {many - 5} more) of {strategies} strategies "
        f"(strategy-0, strategy-1, strategy-2, strategy-3, strategy-4 and {strategies - 5} more)"
    )
    assert blind.text.startswith(f"{strategies} rollouts are blind (strategy-0 2, strategy-1 2, ")
    assert stale.text == (
        f"the feed has no new candles of {affected}: "
        "the S000 candle 2026-03-02 03:00 UTC is due, its newest is 2026-03-02 02:00"
    )
    assert over.text == f"the feed is stale: over after 30 min, affected {affected}"
    assert [alert.acknowledged_by for alert in (blind, stale, over)] == ["system", "system", ""]
    assert alert_message(over).title == f"[info] {strategies} strategies: over: the feed is stale"


def test_a_blind_rollout_is_told_of_an_hour_after_what_explains_it(ramped: Engine, still: Still) -> None:
    """An incident that lasts for weeks must not hide a rollout that turns blind."""
    put_decisions(ramped, *(decision_row(version, MONDAY + 2 * HOUR) for version in ("1", "2")))
    told = []

    for minute in (0, 1, 59, 60, 61):
        watch_feed(ramped, still, now=MONDAY + 6 * HOUR + minute * MINUTE)
        tick(ramped, still, now=MONDAY + 6 * HOUR + minute * MINUTE)
        told.append([alert.kind for alert in outbox(ramped)][1:])

    assert told == [["feed.stale"]] * 3 + [["feed.stale", "rollout.blind"]] * 2


def decide(engine: Engine, names: Sequence[str], symbols: Sequence[str], candle: datetime) -> None:
    put_decisions(
        engine,
        *(
            decision_row(version, candle, strategy_name=name, symbol=symbol)
            for name in names
            for version in ("1", "2")
            for symbol in symbols
        ),
    )


class Flat:
    """A feed with hourly candles of one price for any number of symbols, up to a moment."""

    name, timeframe = "flat", "1h"

    def __init__(self, symbols: Sequence[str], *, until: datetime) -> None:
        self._symbols = tuple(symbols)
        self.until = until

    def symbols(self) -> tuple[str, ...]:
        return self._symbols

    def candles(
        self, symbol: str, *, closed_by: datetime, since: datetime | None = None, bars: int | None = None
    ) -> pd.DataFrame:
        last = min(closed_by, self.until) - HOUR
        index = pd.date_range(end=pd.Timestamp(last).floor("h"), periods=bars or 1, freq="h", name="timestamp")
        return pd.DataFrame(1.0, index=index, columns=["open", "high", "low", "close", "volume"])

    def expected_at(self, symbol: str, now: datetime) -> datetime | None:
        return pd.Timestamp(now - HOUR).floor("h").to_pydatetime()


def test_a_feed_that_comes_and_goes_each_minute_is_one_incident(engine: Engine, still: Still) -> None:
    put_version(engine, "1", Status.ACTIVE, symbols=[GOLD])
    whole = SyntheticSource((GOLD, "SILVER"), start=MONDAY.replace(month=1, day=1), days=300)

    for minute in range(60):
        watch_feed(engine, whole if minute % 2 else still, now=MONDAY + 6 * HOUR + minute * MINUTE)
    assert [alert.kind for alert in outbox(engine)] == ["feed.stale"]
    for minute in range(60, 80):
        watch_feed(engine, whole, now=MONDAY + 6 * HOUR + minute * MINUTE)

    assert [alert.kind for alert in outbox(engine)] == ["feed.stale", "incident.ended"]


@pytest.mark.parametrize("many", [3, pytest.param(500, marks=pytest.mark.full)])
def test_a_stale_feed_that_cannot_be_read_any_more_is_told_of_once_more_as_critical(engine: Engine, many: int) -> None:
    """It changes to and fro, and a shadow run sees a part of it."""
    symbols = [f"S{number:03}" for number in range(many)]
    for number in range(10):
        put_version(engine, "1", Status.ACTIVE, strategy_name=f"strategy-{number}", symbols=symbols, at=MONDAY)
    feed = Flat(symbols, until=MONDAY + 3 * HOUR)
    absent = AbsentSource("/feed.csv", "1h", EvidenceUnavailable("/feed.csv is not there"))

    for minute in range(90):
        watch_feed(engine, absent if minute % 10 == 9 else feed, now=MONDAY + 6 * HOUR + minute * MINUTE)
    feed.until = MONDAY + DAY
    for minute in range(90, 110):
        watch_feed(engine, feed, now=MONDAY + 6 * HOUR + minute * MINUTE)

    stale, absent_alert, over = outbox(engine)
    assert [(each.kind, each.severity, each.facts["symbol_count"]) for each in (stale, absent_alert, over)] == [
        ("feed.stale", "warning", many),
        ("candles.absent", "critical", many),
        ("incident.ended", "info", many),
    ]
    assert absent_alert.at == MONDAY + 6 * HOUR + 9 * MINUTE
    assert over.text.startswith("has no candles: over after 89 min, affected ")
    assert [each.acknowledged_by for each in (stale, absent_alert)] == ["system", "system"]


def test_a_part_that_becomes_critical_takes_nothing_back_of_what_was_told(engine: Engine, still: Still) -> None:
    """A shadow run reports the one symbol that it cannot read. That all are stale was told, and is not told again."""
    put_version(engine, "1", Status.ACTIVE, symbols=[GOLD, "SILVER"])
    put_version(engine, "1", Status.ACTIVE, strategy_name="other", symbols=[GOLD])
    unreadable = StaleSymbol("SILVER", "1h", "SILVER is unavailable", absent=True)
    part = feed_faults(engine, [unreadable], {("SILVER", "1h"): ["fib_rsi"]})

    watch_feed(engine, still, now=MONDAY + 6 * HOUR)
    for minute in range(180):
        now = MONDAY + 7 * HOUR + minute * MINUTE
        report_faults(engine, FEED, part, now=now, partly=True)
        watch_feed(engine, still, now=now)

    assert [(each.kind, each.facts["symbols"]) for each in outbox(engine)] == [
        ("feed.stale", [GOLD, "SILVER"]),
        ("candles.absent", ["SILVER"]),
    ]


def test_a_small_fault_that_lasts_hides_no_large_one(engine: Engine, still: Still, market: SyntheticSource) -> None:
    """A symbol that left the feed stays an incident for weeks. The loss of all others is alerted, and only once."""
    put_version(engine, "1", Status.ACTIVE, symbols=[GOLD])
    put_version(engine, "1", Status.ACTIVE, strategy_name="other", symbols=["SILVER"])

    class OneLeft(SyntheticSource):
        def candles(self, symbol: str, **period: Any) -> pd.DataFrame:
            return (still if symbol == GOLD else market).candles(symbol, **period)

    one_left = OneLeft((GOLD, "SILVER"), start=MONDAY.replace(month=1, day=1), days=300)
    for hour in range(6, 12):
        watch_feed(engine, one_left, now=MONDAY + hour * HOUR)
    for minute in range(60):
        watch_feed(engine, still, now=MONDAY + 12 * HOUR + minute * MINUTE)

    assert [(alert.kind, alert.facts["symbols"]) for alert in outbox(engine)] == [
        ("feed.stale", [GOLD]),
        ("feed.stale", [GOLD, "SILVER"]),
    ]


def test_ticks_of_many_rollouts_that_stop_are_one_alert(engine: Engine) -> None:
    for name in ("a", "b", "c"):
        put_version(engine, "1", Status.ACTIVE, strategy_name=name)
        put_version(engine, "2", strategy_name=name)
        start_rollout(engine, Command(OWNER, MONDAY), strategy_name=name, version="2", plan=Plan())

    for minute in (9, 10, 11, 200):
        watch_ticks(engine, now=MONDAY + minute * MINUTE, overdue=OVERDUE)

    (alert,) = (each for each in outbox(engine) if each.kind == "rollout.tick_overdue")
    assert alert.text == (
        "the gates of 3 rollouts do not run (a 2, b 2, c 2): "
        "a 2 was last ticked at 2026-03-02 00:00 UTC: its gates do not run"
    )
    assert alert_message(alert).title == "[critical] 3 strategies: tick overdue: its users are not protected"
    assert alert_message(alert).action == "rollout tick"


def test_a_source_with_a_fault_of_its_own_is_told_of_and_stops_nothing(engine: Engine, still: Still) -> None:
    class Broken(Still):
        def expected_at(self, symbol: str, now: datetime) -> datetime | None:
            if symbol == GOLD:
                raise ZeroDivisionError("no calendar")
            return super().expected_at(symbol, now)

    put_version(engine, "1", Status.ACTIVE, symbols=[GOLD, "SILVER"])
    broken = Broken((GOLD, "SILVER"), start=MONDAY.replace(month=1, day=1), days=300)

    for hour in (8, 9):
        said = watch_feed(engine, broken, now=MONDAY + hour * HOUR)

    assert said[0] == "fib_rsi: GOLD is unavailable: ZeroDivisionError: no calendar"
    (alert,) = outbox(engine)
    assert (len(said), alert.kind, alert.facts["symbols"]) == (2, "candles.absent", [GOLD, "SILVER"])


def test_of_a_version_that_is_retired_no_candle_is_awaited(engine: Engine, still: Still) -> None:
    put_version(engine, "0", Status.RETIRED)

    assert watch_feed(engine, still, now=MONDAY + DAY) == []


def undecided(engine: Engine) -> list[str]:
    return [alert.text for alert in outbox(engine) if alert.kind == "shadow.overdue"]


def test_a_strategy_that_decides_no_more_is_told_of_once_an_episode(engine: Engine, market: SyntheticSource) -> None:
    put_version(engine, "1", Status.ACTIVE, at=MONDAY)
    put_version(engine, "2", Status.RETIRED, at=MONDAY - DAY)
    for minute in (0, 30, 69):
        watch_shadow(engine, market, now=MONDAY + minute * MINUTE, overdue=OVERDUE)
    assert undecided(engine) == []

    for minute in (70, 120, 179):
        watch_shadow(engine, market, now=MONDAY + minute * MINUTE, overdue=OVERDUE)
    put_decisions(engine, decision_row("1", MONDAY + HOUR))
    for minute in (180, 189, 190, 200):
        watch_shadow(engine, market, now=MONDAY + minute * MINUTE, overdue=OVERDUE)

    assert undecided(engine) == [
        "no version of fib_rsi has decided on the GOLD candle 2026-03-02 00:00 UTC: there is no decision yet",
        "no version of fib_rsi has decided on the GOLD candle 2026-03-02 02:00 UTC: "
        "the newest decision is on 2026-03-02 01:00",
    ]


def test_without_candles_nobody_is_said_to_decide_too_late(engine: Engine) -> None:
    """The feed is told of; the shadow run could not have done better."""
    put_version(engine, "1", Status.ACTIVE)
    absent = AbsentSource("/nowhere.csv", "1h", EvidenceUnavailable("/nowhere.csv is not there"))

    assert watch_shadow(engine, absent, now=MONDAY + DAY, overdue=OVERDUE) == []
