from datetime import datetime, timedelta
from itertools import count, product
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine

from strategy_core.domain.comparison import Comparison
from strategy_core.domain.errors import InvalidPeriod, NoActiveVersion, UnknownVersion
from strategy_core.domain.indicators import regimes
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.performance import max_drawdown
from strategy_core.domain.scoring import ScoringRule
from strategy_core.market.synthetic import SyntheticSource
from strategy_core.services.compare import compare_all, compare_versions, compare_with_curves, last_days, period
from strategy_core.services.transitions import replace_active
from strategy_core.store import outcomes, versions
from strategy_core.store.engine import reading, transaction
from tests import in_memory
from tests.builders import DAY, HOUR, MONDAY, decision_row, outcome_row, put_day, put_decisions, put_version
from tests.effort import examples
from tests.prepared import prepared

NOW = MONDAY + 5 * DAY


@pytest.fixture
def pair(engine: Engine) -> Engine:
    """Five days: version 1 buys thrice a day for 0.5 R; version 2 sells on two of these hours for 1.0 R."""
    prepared(engine, put_five_days)
    return engine


def put_five_days(engine: Engine) -> None:
    put_version(engine, "1", Status.ACTIVE, symbols=("GOLD", "SILVER"))
    put_version(engine, "2", symbols=("GOLD", "SILVER"))
    for day in range(5):
        at = MONDAY + day * DAY
        put_day(engine, at, {"1": "buy"}, {"1": 0.5}, signal_hours=[2, 8, 14])
        put_day(engine, at, {"2": "sell"}, {"2": 1.0}, signal_hours=[2, 8])


def test_a_comparison_counts_what_both_decided(pair: Engine) -> None:
    put_decisions(pair, decision_row("2", NOW, "error", error_kind="raised"), decision_row("1", NOW, "buy"))
    put_decisions(pair, decision_row("2", NOW + HOUR, reason="insufficient_history"), decision_row("1", NOW + HOUR))
    found = compare_versions(
        pair, strategy_name="fib_rsi", shadow_version="2", over=period(MONDAY, NOW + DAY), symbol="GOLD"
    )

    assert (found.candles_compared, found.candles_excluded) == (120, 2)
    assert (found.shadow_signal_count, found.active_signal_count) == (10, 15)
    assert found.divergence_rate == 100.0
    assert found.divergence_rate_all_candles == pytest.approx(12.5)
    assert found.agreement["sell"]["buy"] == 10  # type: ignore[index]
    assert (found.shadow.win_rate, found.active.expectancy) == (1.0, 0.5)
    assert found.difference.mean == pytest.approx((10 * 0.5 - 5 * 0.5) / 15)
    assert found.by_regime == {}


def test_filters_narrow_it_to_a_period_and_a_symbol(pair: Engine) -> None:
    over = period(MONDAY + DAY, MONDAY + 2 * DAY)

    gold = compare_versions(pair, strategy_name="fib_rsi", shadow_version="2", over=over)
    silver = compare_versions(pair, strategy_name="fib_rsi", shadow_version="2", over=over, symbol="SILVER")

    assert (gold.candles_compared, gold.slots) == (24, 3)
    assert (silver.candles_compared, silver.divergence_rate) == (0, None)


def test_with_candles_it_tells_regimes_apart(pair: Engine, market: SyntheticSource) -> None:
    found = compare_versions(
        pair, strategy_name="fib_rsi", shadow_version="2", over=last_days(5, NOW), symbol="GOLD", source=market
    )

    assert sum(one.slots for one in found.by_regime.values()) == found.slots == 15
    assert set(found.by_regime) - {"unknown"}


def test_it_must_know_both_versions(engine: Engine) -> None:
    put_version(engine, "2")
    with pytest.raises(NoActiveVersion):
        compare_versions(engine, strategy_name="fib_rsi", shadow_version="2", over=last_days(5, NOW))
    with pytest.raises(UnknownVersion):
        compare_versions(
            engine, strategy_name="fib_rsi", shadow_version="2", over=last_days(5, NOW), active_version="9"
        )


def test_a_period_must_have_a_length() -> None:
    with pytest.raises(InvalidPeriod, match="start before end"):
        period(NOW, NOW)


def test_every_night_each_challenger_is_compared_and_stored_once(pair: Engine, market: SyntheticSource) -> None:
    put_version(pair, "3", symbols=("GOLD",))
    put_version(pair, "0", Status.RETIRED)
    put_version(pair, "1", strategy_name="lonely")

    reports = compare_all(pair, market, now=NOW, days=5)
    compare_all(pair, market, now=NOW, days=5)
    compare_all(pair, market, now=NOW + timedelta(days=1), days=5)

    assert [(report.shadow_version, report.active_version) for report in reports] == [("2", "1"), ("3", "1")]
    with reading(pair) as session:
        stored = outcomes.find_reports(session, "fib_rsi")
    assert len(stored) == 4
    assert stored[0].created_at == NOW + DAY
    assert reports[0].report["shadow_signal_count"] == 10


def test_all_are_compared_with_the_version_that_was_active_at_the_beginning(
    pair: Engine, market: SyntheticSource
) -> None:
    """It takes minutes, and an owner activates another one meanwhile: none is compared with itself."""
    put_version(pair, "3", symbols=("GOLD",))

    class Meanwhile(SyntheticSource):
        def candles(self, symbol: str, **asked: Any) -> pd.DataFrame:
            with transaction(pair) as session:
                if versions.get_version(session, "fib_rsi", "3").status == Status.SHADOW:
                    replace_active(
                        session,
                        versions.get_version(session, "fib_rsi", "3"),
                        outgoing_becomes=Status.SHADOW,
                        now=NOW,
                    )
            return super().candles(symbol, **asked)

    reports = compare_all(pair, Meanwhile(("GOLD",), start=MONDAY.replace(month=1, day=1), days=300), now=NOW, days=5)

    assert [(report.shadow_version, report.active_version) for report in reports] == [("2", "1"), ("3", "1")]
    assert reports[1].report["candles_compared"] == 0  # 3 has said nothing yet


def test_drawdowns_are_of_the_same_candles_however_long_one_has_decided_before(engine: Engine) -> None:
    """Both decide alike since Wednesday. Before, version 1 alone fell, and a trade of that time closes later."""
    put_version(engine, "1", Status.ACTIVE)
    put_version(engine, "2")
    alike = MONDAY + 2 * DAY
    for day, said in ((0, ["1"]), (1, ["1"]), (2, ["1", "2"]), (3, ["1", "2"]), (4, ["1", "2"])):
        of: dict[str, str] = dict.fromkeys(said, "buy")
        worth = dict.fromkeys(said, -3.0 if day < 2 else -0.5)
        put_day(engine, MONDAY + day * DAY, of, worth, signal_hours=[2, 8, 23])

    found, curves = compare_with_curves(
        engine,
        strategy_name="fib_rsi",
        shadow_version="2",
        over=period(MONDAY, NOW),
        symbol=None,
        source=None,
        now=NOW,
    )

    assert found.difference.mean == 0.0
    assert found.shadow.max_drawdown == found.active.max_drawdown == pytest.approx(6 * 0.005)
    assert found.drawdowns_from == alike + 24 * HOUR  # trades of before have closed
    assert curves.equity.canary == curves.equity.control
    assert curves.equity.control[-1] == pytest.approx(-6 * 0.5)


def test_a_version_that_has_just_begun_has_no_drawdown_yet(engine: Engine) -> None:
    put_version(engine, "1", Status.ACTIVE)
    put_version(engine, "2")
    put_day(engine, MONDAY, {"1": "buy"}, {"1": -3.0}, signal_hours=[2, 8])
    put_day(engine, MONDAY + DAY, {"1": "buy", "2": "buy"}, {"1": -1.0, "2": -1.0}, signal_hours=[2, 8])

    found = compare_versions(engine, strategy_name="fib_rsi", shadow_version="2", over=period(MONDAY, NOW))

    assert (found.slots, found.difference.mean) == (2, 0.0)
    assert (found.shadow.max_drawdown, found.active.max_drawdown, found.drawdowns_from) == (None, None, None)


def test_what_one_does_after_the_other_was_retired_is_in_no_drawdown(engine: Engine) -> None:
    put_version(engine, "1", Status.ACTIVE)
    put_version(engine, "2", Status.RETIRED)
    put_day(engine, MONDAY, {"1": "buy", "2": "buy"}, {"1": -1.0, "2": -1.0}, signal_hours=[2, 8])
    put_day(engine, MONDAY + DAY, {"1": "buy"}, {"1": -5.0}, signal_hours=[2, 8])

    found = compare_versions(engine, strategy_name="fib_rsi", shadow_version="2", over=period(MONDAY, NOW))

    assert found.shadow.max_drawdown == found.active.max_drawdown == pytest.approx(0.02)
    assert found.drawdowns_from == MONDAY


SYMBOLS = ("GOLD", "SILVER")
HORIZON = 2
CANDLES = [MONDAY + 3 * DAY + n * HOUR for n in range(0, 96, 4)]  # over a weekend, in which there are none
KEYS = list(product(SYMBOLS, CANDLES))
NUMBER = count()
EIGHTHS = st.one_of(st.none(), st.integers(-24, 24).map(lambda n: n / 8))  # sums of these are exact
ROW = st.tuples(st.sampled_from(["hold", "hold", "buy", "sell", "error", "too little", "absent"]), EIGHTHS, EIGHTHS)
ARM = st.lists(ROW, min_size=len(KEYS), max_size=len(KEYS))


@settings(max_examples=examples(12), suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(ours=ARM, theirs=ARM, whole=st.booleans(), told=st.booleans())
def test_the_database_adds_up_what_the_rows_mean(
    engine: Engine, market: SyntheticSource, ours: list[Any], theirs: list[Any], *, whole: bool, told: bool
) -> None:
    """Any log: rows that one arm lacks, errors, open trades, marks on candles without a row, weekends."""
    number = next(NUMBER)
    names = f"shadow {number}", f"active {number}"
    with transaction(engine) as session:
        scoring = ScoringRule(horizon=HORIZON).model_dump(mode="json")
        versions.create_strategy(session, "fib_rsi", salt="", scoring=scoring, now=MONDAY)
    for name, rows in zip(names, (ours, theirs), strict=True):
        put_version(engine, name, symbols=SYMBOLS)
        _put(engine, name, rows)
    over = period(CANDLES[0], CANDLES[-1] + HOUR) if whole else period(CANDLES[3], CANDLES[20])

    found = compare_versions(
        engine,
        strategy_name="fib_rsi",
        shadow_version=names[0],
        active_version=names[1],
        over=over,
        source=market if told else None,
    )

    meant = _meant(ours, theirs, over.start, over.end, market if told else None)
    assert _flat(found) == pytest.approx(_flat(meant), rel=1e-9, abs=1e-12)


def _put(engine: Engine, version: str, rows: list[Any]) -> None:
    logged, booked, marked = [], [], []
    for (symbol, at), (said, r, mark) in zip(KEYS, rows, strict=True):
        decision = said if said in ("buy", "sell", "error") else "hold"
        if said != "absent":
            faults = {"reason": "insufficient_history"} if said == "too little" else {}
            faults |= {"error_kind": "raised"} if said == "error" else {}
            logged.append(decision_row(version, at, decision, symbol=symbol, **faults))
        if decision in ("buy", "sell") and r is not None:
            booked.append(outcome_row(version, at, r, symbol=symbol))
        if mark is not None:
            key = {"strategy_name": "fib_rsi", "version": version, "symbol": symbol}
            marked.append(key | {"timestamp": at, "r": mark})
    put_decisions(engine, *logged, counted=False)
    with transaction(engine) as session:
        outcomes.book_outcomes(session, booked)
        outcomes.mark_equity(session, marked)


def _meant(
    ours: list[Any], theirs: list[Any], start: datetime, end: datetime, source: SyntheticSource | None
) -> Comparison:
    """Return the comparison from the rows themselves."""
    rows = [
        (key, *both)
        for key, *both in zip(KEYS, ours, theirs, strict=True)
        if start <= key[1] < end and any(said != "absent" for said, _, _ in both)
    ]
    labels = {} if source is None else {name: regimes(source.candles(name, closed_by=end)) for name in SYMBOLS}
    spans = {symbol: span for symbol in SYMBOLS if (span := _span(symbol, ours, theirs, start, end))}
    meant = in_memory.compare(
        symbols=[symbol for (symbol, _), *_ in rows],
        opened_at=pd.DatetimeIndex([at for (_, at), *_ in rows], tz="UTC"),
        shadow=_arm([one for _, one, _ in rows]),
        active=_arm([other for *_, other in rows]),
        regimes=[labels[symbol].get(pd.Timestamp(at), "unknown") for (symbol, at), *_ in rows] if source else None,
    )
    if not spans:
        return meant
    deepest = [_drawdown(spans, arm, end) for arm in (ours, theirs)]
    both = [
        of.model_copy(update={"max_drawdown": fall})
        for of, fall in zip((meant.shadow, meant.active), deepest, strict=True)
    ]
    first = min(span[0] for span in spans.values())
    return meant.model_copy(update={"shadow": both[0], "active": both[1], "drawdowns_from": first})


def _span(
    symbol: str, ours: list[Any], theirs: list[Any], start: datetime, end: datetime
) -> tuple[datetime, datetime] | None:
    """Return the first and last candle of the symbol on which neither has a trade that the other could not open."""
    rows = [
        [(at, said) for (of, at), (said, *_) in zip(KEYS, arm, strict=True) if of == symbol] for arm in (ours, theirs)
    ]
    decided = [[at for at, said in arm if said in ("hold", "buy", "sell")] for arm in rows]
    if not all(decided):
        return None
    firsts = [arm[0] for arm in decided]
    begun = max(firsts)
    later = rows[firsts.index(begun)]
    settled = [at for at, said in later if at >= begun and said != "absent"][HORIZON if firsts[0] != firsts[1] else 0 :]
    if not settled:
        return None
    lasts = {arm[-1] for arm in decided}
    span = max(settled[0], start), end if len(lasts) == 1 else min(end, *lasts)
    return span if span[0] <= span[1] and span[0] < end else None


def _drawdown(spans: dict[str, tuple[datetime, datetime]], rows: list[Any], end: datetime) -> float:
    changes: dict[datetime, float] = {}
    for (symbol, at), (*_, mark) in zip(KEYS, rows, strict=True):
        if mark is not None and symbol in spans and spans[symbol][0] <= at <= spans[symbol][1] and at < end:
            changes[at] = changes.get(at, 0.0) + mark
    return max_drawdown(np.array([changes[at] for at in sorted(changes)]), 0.01) or 0.0


def _arm(rows: list[Any]) -> in_memory.Arm:
    signals = [r if said in ("buy", "sell") else None for said, r, _ in rows]
    r = np.array(signals, dtype=np.float64)
    return in_memory.Arm([said for said, *_ in rows], r, r * 10)


def _flat(found: Comparison) -> dict[str, Any]:
    flat = pd.json_normalize(found.model_dump(mode="json")).iloc[0]
    return {str(key): value for key, value in flat.items()}
