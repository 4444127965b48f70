"""Exits of positions: which signal one follows, and the first reason to leave it."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategy_core.domain.errors import InvalidDecision, InvalidSetting
from strategy_core.domain.live_trades import Serving, serving_at
from strategy_core.domain.parsing import owners_span
from strategy_core.domain.positions import (
    Decided,
    Exit,
    Holding,
    OpenPosition,
    SimulatedExit,
    Why,
    count_suppressed,
    exit_of,
    hand_over_problem,
    signal_of,
)
from strategy_core.domain.routing import bucket_of
from strategy_core.domain.strategy import Action, Decision, Intent, checked_decision
from strategy_core.domain.user_exclusions import ExclusionKind, UserExclusion, standings
from tests.builders import DAY, HOUR, MONDAY

OPENED = MONDAY + 5 * HOUR
NOW = MONDAY + 100 * HOUR


def position(side: str | None = None, **changes: object) -> OpenPosition:
    facts: dict[str, object] = {"trade_id": "t", "symbol": "GOLD", "side": side, "opened_by": "1", "manager": "1"}
    facts |= {"opened_at": OPENED, "managed_since": OPENED, **changes}
    return OpenPosition(**facts)  # type: ignore[arg-type]


def said(**words: str) -> list[Decided]:
    """Return decisions by the hour: h3="buy" on the candle that opened at three o'clock."""
    return [
        Decided(
            MONDAY + int(hour[1:]) * HOUR, "hold" if word == "close" else word, "close" if word == "close" else "open"
        )
        for hour, word in words.items()
    ]


def left(
    simulated: SimulatedExit | None = None,
    *,
    horizon: int = 24,
    on: OpenPosition | None = None,
    words: Mapping[str, str] = MappingProxyType({}),
    **hours: str,
) -> Exit | None:
    managed = said(**words, **hours)
    return exit_of(on or position(), managed=managed, simulated=simulated, horizon=horizon, timeframe=HOUR, now=NOW)


def at(hour: int) -> datetime:
    return MONDAY + hour * HOUR


@pytest.mark.parametrize(
    ("words", "side", "hour"),
    [
        ({"h4": "buy", "h5": "sell"}, None, 4),  # the candle of the entry has not closed
        ({"h2": "buy", "h3": "hold", "h4": "hold"}, None, 2),  # the order was filled late
        ({"h1": "buy", "h2": "hold", "h3": "hold", "h4": "hold"}, None, None),
        ({"h3": "buy", "h4": "sell"}, "buy", 3),
        ({"h3": "buy", "h4": "sell"}, None, 4),
        ({"h3": "error", "h4": "hold"}, None, None),
    ],
)
def test_a_position_follows_the_newest_signal_before_it(
    words: dict[str, str], side: str | None, hour: int | None
) -> None:
    assert signal_of(position(side), said(**words), HOUR) == (None if hour is None else at(hour))


def test_a_gap_in_the_candles_does_not_hide_the_signal() -> None:
    assert signal_of(position(opened_at=OPENED + 2 * DAY), said(h4="buy"), HOUR) == at(4)


def test_the_earliest_reason_counts_and_of_one_candle_the_rule() -> None:
    stop = SimulatedExit("stop", at(8))

    assert left(stop, h9="close") == Exit("t", "1", Why.STOP, at(8))
    assert left(stop, h8="close") == Exit("t", "1", Why.STOP, at(8))
    assert left(stop, h7="close") == Exit("t", "1", Why.CLOSE, at(7))
    assert left(h7="hold") is None


def test_a_close_before_the_entry_or_before_the_hand_over_does_not_count() -> None:
    assert left(h4="close") is None
    assert left(on=position(managed_since=at(8)), h7="close") is None
    assert left(on=position(managed_since=at(8)), h8="close") == Exit("t", "1", Why.CLOSE, at(8))


def test_without_a_signal_the_horizon_counts_from_the_candle_of_the_entry() -> None:
    words = {f"h{hour}": "hold" for hour in range(12)}

    assert left(horizon=3, words=words) == Exit("t", "1", Why.HORIZON, at(7))
    assert left(horizon=8, words=words) is None
    assert left(SimulatedExit("close", at(6)), horizon=3, words=words) == Exit("t", "1", Why.HORIZON, at(7))


def test_a_flatten_comes_before_every_other_reason() -> None:
    assert left(on=position(flatten_at=NOW), h7="close") == Exit("t", "1", Why.FLATTEN, None)
    assert left(on=position(flatten_at=NOW + HOUR)) is None


@given(st.lists(st.sampled_from(["hold", "close", "buy", "sell"]), max_size=12), st.integers(1, 12))
def test_a_position_that_was_left_stays_left_for_the_same_reason(words: list[str], horizon: int) -> None:
    """Later decisions do not change the exit: whoever reads the feed late reads the same one."""
    spoken = {f"h{hour}": word for hour, word in enumerate(words, start=4)}
    seen = [left(horizon=horizon, words=dict(list(spoken.items())[:count])) for count in range(len(spoken) + 1)]
    first = next((found for found in seen if found is not None), None)

    assert all(found == first for found in seen[seen.index(first) :])


@pytest.mark.parametrize(
    ("action", "intent", "why"),
    [
        (Action.BUY, Intent.CLOSE, "buy to close; allowed: hold to close"),
        (Action.HOLD, "close", "intent 'close' is not"),
    ],
)
def test_only_a_hold_may_close(action: Action, intent: Intent, why: str) -> None:
    with pytest.raises(InvalidDecision, match=why):
        checked_decision(Decision(action, intent=intent))


def test_a_hold_may_close() -> None:
    decision = Decision(Action.HOLD, intent=Intent.CLOSE)

    assert checked_decision(decision) is decision
    assert not decision.signals


def test_an_entry_is_suppressed_where_routing_gives_the_user_the_version_and_another_position_is_open() -> None:
    salt = "salt"
    low, high = sorted((f"user-{number}" for number in range(40)), key=lambda user: bucket_of(user, salt))[::39]
    history = [Serving(MONDAY, "1", "2", bucket_of(high, salt))]  # a canary of all but the last
    held = [
        Holding(low, "GOLD", at(0), at(10)),
        Holding(low, "GOLD", at(2), None),  # the same user, counted once a signal
        Holding(high, "GOLD", at(0), None),
    ]

    def count(version: str, hour: int, symbol: str = "GOLD", *exclusions: UserExclusion) -> int:
        by_user = {each.user_id: [each] for each in exclusions}
        return count_suppressed(version, [(symbol, at(hour))], held, history, salt, by_user)

    assert (count("2", 5), count("1", 5), count("3", 5)) == (1, 1, 0)
    assert count("2", 5, "SILVER") == 0  # nobody holds it
    assert count("2", -1) == 0  # before the history begins
    opted_out = UserExclusion("fib_rsi", low, ExclusionKind.OPT_OUT, at(1), at(6))
    assert (count("2", 5, "GOLD", opted_out), count("1", 5, "GOLD", opted_out)) == (0, 2)
    assert (count("2", 7, "GOLD", opted_out), count("1", 7, "GOLD", opted_out)) == (1, 1)


_USERS = [f"user-{number}" for number in range(6)]
_HOURS = st.integers(0, 9)
_SERVINGS = st.builds(
    Serving,
    _HOURS.map(at),
    st.sampled_from(["1", "2", None]),
    st.sampled_from(["2", "3", None]),
    st.sampled_from([0, 2_500, 5_000, 10_000]),
    st.sampled_from([frozenset(), frozenset({"GOLD"})]),
)
_HELD = st.builds(
    lambda user, symbol, hour, hours: Holding(user, symbol, at(hour), at(hour + hours) if hours else None),
    *(st.sampled_from(_USERS), st.sampled_from(["GOLD", "SILVER"]), _HOURS, st.integers(0, 5)),
)
_EXCLUDED = st.builds(
    lambda user, kind, hour, hours: UserExclusion("fib_rsi", user, kind, at(hour), at(hour + hours) if hours else None),
    *(st.sampled_from(_USERS), st.sampled_from(list(ExclusionKind)), _HOURS, st.integers(0, 5)),
)


@given(
    st.lists(_SERVINGS, max_size=4, unique_by=lambda serving: serving.since),
    st.lists(_HELD, max_size=12),
    st.lists(_EXCLUDED, max_size=4),
    st.lists(st.tuples(st.sampled_from(["GOLD", "SILVER"]), _HOURS.map(at)), max_size=5),
)
def test_suppressed_entries_are_those_of_each_user_by_routing(
    history: list[Serving], held: list[Holding], excluded: list[UserExclusion], signals: list[tuple[str, datetime]]
) -> None:
    history = sorted(history, key=lambda serving: serving.since)
    by_user = {user: [each for each in excluded if each.user_id == user] for user in _USERS}

    def routed(user: str, symbol: str, moment: datetime) -> str | None:
        (standing,) = standings(by_user[user], moment, moment)
        serving = serving_at(history, moment)
        return None if serving is None else serving.version_of(bucket_of(user, "salt"), symbol, standing)

    def holds(user: str, symbol: str, moment: datetime) -> bool:
        mine = [each for each in held if (each.user_id, each.symbol) == (user, symbol)]
        return any(each.opened_at <= moment and (each.closed_at is None or moment < each.closed_at) for each in mine)

    for version in ("1", "2", "3"):
        expected = sum(
            holds(user, symbol, moment) and routed(user, symbol, moment) == version
            for symbol, moment in signals
            for user in _USERS
        )
        assert count_suppressed(version, signals, held, history, "salt", by_user) == expected


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        ({}, ""),
        ({"status": "retired"}, "it is retired and decides no more"),
        ({"quarantined": True}, "it was rolled back"),
        ({"timeframes": ("1h", "4h")}, "it decides on 4h candles, and the positions follow 1h candles"),
        ({"missing": ["SILVER"]}, "it does not decide on SILVER; it decides on GOLD"),
    ],
)
def test_who_cannot_take_positions_over_says_why(facts: dict[str, Any], why: str) -> None:
    able: dict[str, Any] = {"status": "active", "quarantined": False, "timeframes": ("1h", "1h"), "missing": []}

    assert hand_over_problem(symbols=["GOLD"], **able | facts) == why


@pytest.mark.parametrize(
    ("text", "span"), [("0", timedelta(0)), ("90s", timedelta(seconds=90)), ("12h", 12 * HOUR), ("3d", 3 * DAY)]
)
def test_a_span_is_a_number_and_a_unit(text: str, span: timedelta) -> None:
    assert owners_span(text, "--flatten-after") == span


@pytest.mark.parametrize("text", ["", "3", "-1d", "1.5h", "3 days", "367d", "9999999999d"])
def test_another_span_is_refused(text: str) -> None:
    with pytest.raises(InvalidSetting, match="12h or 3d"):
        owners_span(text, "--flatten-after")
