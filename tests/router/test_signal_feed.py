"""A program reads signals from the database or the API, stops, and goes on from the cursor that it has stored."""

import json
import threading
from itertools import islice
from typing import Any

import pytest
from sqlalchemy import Engine, text
from structlog.testing import capture_logs

from strategy_core import SignalFeed
from strategy_core.domain.errors import (
    Forbidden,
    InvalidName,
    InvalidSetting,
    InvalidToken,
    RolloutError,
    SignalCursorLost,
    SignalFeedClosed,
    SignalsUnavailable,
    UnknownStrategy,
)
from strategy_core.router import signal_feed
from strategy_core.services.signals import publish_signals
from strategy_core.store.engine import transaction
from tests.builders import HOUR, MONDAY, decision_row, put_decisions
from tests.endpoint import Endpoint


def put_signals(engine: Engine, *hours: int) -> None:
    put_decisions(engine, *(decision_row("1", MONDAY + hour * HOUR, "buy") | {"role": "active"} for hour in hours))
    publish_signals(engine)


def hours(signals: Any) -> list[float]:
    return [(each.candle - MONDAY) / HOUR for each in signals]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signal_feed, "_FIRST_S", 0.01)
    monkeypatch.setattr(signal_feed, "_LOOK_S", 0.01)


def test_a_program_that_starts_again_goes_on_where_it_was(canary: Engine, database_url: str) -> None:
    put_signals(canary, 0, 1, 2)
    with SignalFeed(database_url) as feed:
        handled = list(islice(feed, 2))
        cursor = handled[-1].cursor
        assert feed.cursor == cursor

    with SignalFeed(database_url, since=cursor) as feed:
        put_signals(canary, 3)
        rest = list(islice(feed, 2))

    assert hours(handled) == [0, 1]
    assert hours(rest) == [2, 3]


def test_iteration_that_was_left_is_taken_up(canary: Engine, database_url: str) -> None:
    put_signals(canary, 0, 1, 2)

    with SignalFeed(database_url) as feed:
        assert hours(islice(feed, 1)) == [0]
        assert hours(islice(feed, 2)) == [1, 2]


def test_a_read_waits_for_a_signal_or_returns_none(canary: Engine, database_url: str) -> None:
    with SignalFeed(database_url) as feed:
        assert feed.read() == []
        logging = threading.Timer(0.1, put_signals, (canary, 4))
        logging.start()

        assert hours(feed.read(wait_s=60)) == [4]
        assert feed.read() == []
        logging.join()


def test_another_strategys_signals_are_left_out(canary: Engine, database_url: str) -> None:
    put_signals(canary, 0)

    with SignalFeed(database_url, strategy_name="nobodys") as feed, pytest.raises(UnknownStrategy):
        feed.read()
    with SignalFeed(database_url, strategy_name="fib_rsi") as feed:
        assert hours(feed.read()) == [0]


def test_closing_ends_iteration(canary: Engine, database_url: str) -> None:
    put_signals(canary, 0)
    feed = SignalFeed(database_url)
    seen: list[float] = []
    thread = threading.Thread(target=lambda: seen.extend(hours(feed)))
    thread.start()
    closing = threading.Timer(0.2, feed.close)
    closing.start()

    thread.join(60)

    assert not thread.is_alive()
    assert seen == [0]
    with pytest.raises(SignalFeedClosed):
        feed.read()


def test_while_the_database_is_away_iteration_tries_again(canary: Engine, database_url: str) -> None:
    put_signals(canary, 0)
    with transaction(canary) as session:
        session.connection().execute(text("ALTER TABLE signal RENAME TO away"))

    def come_back() -> None:
        with transaction(canary) as session:
            session.connection().execute(text("ALTER TABLE away RENAME TO signal"))

    with SignalFeed(database_url) as feed, capture_logs() as logs:
        with pytest.raises(SignalsUnavailable, match="cannot be read"):
            feed.read()
        returning = threading.Timer(0.2, come_back)
        returning.start()
        found = list(islice(feed, 1))
        returning.join()

    assert hours(found) == [0]
    assert [each["event"] for each in logs] == ["signals.unavailable", "signals.available"]


@pytest.mark.parametrize(
    "given", [{}, {"database_url": "sqlite:///x", "api_url": "https://x"}, {"api_url": "https://a:b@x"}]
)
def test_an_address_is_given_once_and_without_secrets(given: dict[str, str]) -> None:
    with pytest.raises(InvalidSetting):
        SignalFeed(**given)


def test_a_cursor_that_is_none_is_refused_at_once() -> None:
    with pytest.raises(InvalidName, match="cursor"):
        SignalFeed("sqlite:///x.db", since="7")


def answered(*signals: int, cursor: str, **changes: Any) -> bytes:
    items = [
        {
            "cursor": f"{hour + 1}-00000000",
            "strategy_name": "fib_rsi",
            "version": "1",
            "symbol": "GOLD",
            "candle": (MONDAY + hour * HOUR).isoformat(),
            "closed_at": (MONDAY + (hour + 1) * HOUR).isoformat(),
            "valid_until": (MONDAY + (hour + 2) * HOUR).isoformat(),
            "action": "buy",
            "intent": "open",
            "confidence": 0.5,
            "risk_scale": 1.0,
            "role": "active",
        }
        for hour in signals
    ]
    return json.dumps({"items": items, "cursor": cursor, "more": False, **changes}).encode()


@pytest.fixture
def api(endpoint: Endpoint) -> Endpoint:
    endpoint.body = answered(0, 1, cursor="2-00000000")
    return endpoint


def test_over_the_api_a_program_asks_with_its_token_from_its_cursor(api: Endpoint) -> None:
    with SignalFeed(api_url=f"{api.url}/", token="t0ken", strategy_name="fib_rsi", since="7-0a0b0c0d") as feed:
        found = feed.read()
        feed.read()

    assert hours(found) == [0, 1]
    assert found[0].may_enter(MONDAY + HOUR)
    assert feed.cursor == "2-00000000"
    assert [path for path, _, _ in api.asked] == ["/api/v1/strategy/signals"] * 2
    assert api.asked[0][2]["Authorization"] == "Bearer t0ken"


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (401, {"type": "/problems/invalid-token", "why": "it has expired"}, InvalidToken),
        (403, {"type": "/problems/forbidden", "name": "platform", "why": "not this"}, Forbidden),
        (404, {"type": "/problems/unknown-strategy", "known": ["fib_rsi"]}, UnknownStrategy),
        (409, {"type": "/problems/signal-cursor-lost", "cursor": "7-0a0b0c0d", "why": "gone"}, SignalCursorLost),
    ],
)
def test_a_refusal_ends_iteration_with_its_error(
    api: Endpoint, status: int, body: dict[str, Any], error: type[RolloutError]
) -> None:
    api.status, api.body = status, json.dumps(body).encode()

    with SignalFeed(api_url=api.url, since="7-0a0b0c0d") as feed, pytest.raises(error):
        next(iter(feed))


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (500, b"oops"),
        (302, b""),
        (403, b"<html>proxy</html>"),
        (200, b"<html>sign in</html>"),
        (200, answered(0, cursor="x")),
        (200, answered(0, cursor="1-00000000").replace(b'"buy"', b'"short"')),
        (200, answered(0, cursor="1-00000000").replace(b"+00:00", b"")),
    ],
)
def test_any_other_answer_is_tried_again(api: Endpoint, status: int, body: bytes) -> None:
    good, api.body, api.statuses = api.body, body, [status]
    with SignalFeed(api_url=api.url) as feed:
        with pytest.raises(SignalsUnavailable):
            feed.read()
        assert feed.cursor is None
        api.body = good

        assert hours(islice(feed, 2)) == [0, 1]
