"""SignalFeed: reads signals in order, from the database or the API, and continues after a restart."""

import random
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from threading import Event
from types import TracebackType
from typing import Literal, Protocol, Self

import httpx
import structlog
from pydantic import AwareDatetime, BaseModel, ValidationError
from sqlalchemy.exc import DBAPIError

from strategy_core.domain.errors import (
    Forbidden,
    InvalidName,
    InvalidSetting,
    InvalidToken,
    SignalCursorLost,
    SignalFeedClosed,
    SignalsUnavailable,
    UnknownStrategy,
)
from strategy_core.domain.signals import Role, Signal, SignalCursor
from strategy_core.router.source import api_address
from strategy_core.services.queries import Scope
from strategy_core.services.signals import SignalPage, newest_signal, read_signals
from strategy_core.store.engine import failure, open_database

PATH = "/api/v1/strategy/signals"
PAGE = 100  # signals in memory: their roles are those of the moment of reading
_WAIT_S = 5.0  # for one answer of the API, so long a close may take
_LOOK_S = 0.2  # between two looks into a database, which read one row
_ANSWER_S = 5.0  # beyond the wait
_LARGEST = 10_000_000  # bytes of an answer
_FIRST_S, _LONGEST_S = 0.1, 5.0  # between two tries

log = structlog.get_logger(__name__)


class _Source(Protocol):
    address: str

    def read(self, since: str | None, wait_s: float, stop: Event) -> SignalPage:
        """Return the signals after *since*. Without one, wait *wait_s* seconds for it, or until *stop* is set."""

    def close(self) -> None: ...


class SignalFeed:
    """The signals of all strategies or of one, in order, each once. For one thread at a time.

    Iterate over it to wait for signals for as long as the feed is open. Each signal has a `cursor`. Store it together
    with what the signal has caused, and give it as *since* after a restart: the feed continues with the next signal.

    Args:
        database_url: `postgresql://…` or `sqlite:///FILE`, read only. Give either this or *api_url*.
        api_url: address of the platform's API, such as `https://HOST`.
        token: token for the API. A read-only token is enough. It gets the signals of the strategies that it covers.
        strategy_name: only this strategy.
        since: the cursor of the last signal that was handled. Default: begin with the oldest signal that is kept.

    Raises:
        InvalidSetting: the address is missing, given twice or not valid.
        InvalidName: *since* is not a cursor.
    """

    def __init__(
        self,
        database_url: str | None = None,
        *,
        api_url: str | None = None,
        token: str | None = None,
        strategy_name: str | None = None,
        since: str | None = None,
    ) -> None:
        if (database_url is None) == (api_url is None):
            given = "both" if api_url else "neither"
            raise InvalidSetting("SignalFeed", given, "exactly one of database_url and api_url")
        self._cursor = None if since is None else str(SignalCursor.read(since))
        self._stop = Event()
        self._source: _Source = (
            _DatabaseSource(database_url, strategy_name)
            if database_url is not None
            else _HttpSource(api_address(api_url or "", token), token, strategy_name)
        )

    @property
    def cursor(self) -> str | None:
        """The position after all signals that were handed out, or None before the first read."""
        return self._cursor

    def read(self, *, wait_s: float = 0.0) -> list[Signal]:
        """Return the next signals, up to `PAGE` of them. Without one, wait *wait_s* seconds, then return none.

        Raises:
            SignalsUnavailable: there is no answer. Try again later.
            SignalCursorLost: signals after the cursor are not kept any more, or the database has another history.
            InvalidToken, Forbidden, UnknownStrategy, SignalFeedClosed
        """
        page = self._read(wait_s)
        self._cursor = page.cursor
        return page.items

    def __iter__(self) -> Iterator[Signal]:
        """Yield signals until the feed is closed. While they are unavailable, try again, with growing waits.

        Raises:
            SignalCursorLost, InvalidToken, Forbidden, UnknownStrategy: as `read`. Another try would not help.
        """
        pause = _FIRST_S
        while not self._stop.is_set():
            try:
                page = self._read(_WAIT_S)
            except SignalsUnavailable as error:
                if pause == _FIRST_S:
                    log.warning("signals.unavailable", source=error.source, cause=error.cause)
                self._stop.wait(pause * random.uniform(0.5, 1.0))  # noqa: S311  jitter, so that not all readers retry at once
                pause = min(2 * pause, _LONGEST_S)
                continue
            except SignalFeedClosed:
                return
            if pause > _FIRST_S:
                log.info("signals.available", source=self._source.address)
                pause = _FIRST_S
            for signal in page.items:
                self._cursor = signal.cursor
                yield signal
                if self._stop.is_set():  # the rest of the page has not been handed out
                    return
            self._cursor = page.cursor

    def close(self) -> None:
        """End iteration and close the connection. Safe to call from another thread, and twice."""
        self._stop.set()
        self._source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _read(self, wait_s: float) -> SignalPage:
        if self._stop.is_set():
            raise SignalFeedClosed
        try:
            return self._source.read(self._cursor, wait_s, self._stop)
        except SignalsUnavailable:
            if self._stop.is_set():  # closed during the read
                raise SignalFeedClosed from None
            raise


class _DatabaseSource:
    """Looks at the newest number, and reads when there is a new one. A notification would save one look in 0.2 s."""

    def __init__(self, url: str, strategy_name: str | None) -> None:
        parsed = open_database(url).url
        self.address = parsed.set(drivername=parsed.get_backend_name()).render_as_string(hide_password=True)
        if parsed.get_backend_name() == "sqlite":
            parsed = parsed.update_query_dict({"mode": "ro"})  # creates no file
        self._engine = open_database(parsed.render_as_string(hide_password=False))
        self._read_page = partial(read_signals, self._engine, Scope(strategy_name), limit=PAGE)

    def read(self, since: str | None, wait_s: float, stop: Event) -> SignalPage:
        until = time.monotonic() + wait_s
        try:
            page = self._read_page(since=since)
            while not page.items and (left := until - time.monotonic()) > 0 and not stop.wait(min(left, _LOOK_S)):
                if newest_signal(self._engine) > SignalCursor.read(page.cursor).number:
                    page = self._read_page(since=page.cursor)
        except DBAPIError as error:
            raise SignalsUnavailable(self.address, failure(error)) from error
        return page

    def close(self) -> None:
        self._engine.dispose()


class _SignalAnswer(BaseModel):
    cursor: str
    strategy_name: str
    version: str
    symbol: str
    candle: AwareDatetime
    closed_at: AwareDatetime
    valid_until: AwareDatetime
    action: Literal["buy", "sell", "hold"]
    intent: Literal["open", "close"]
    confidence: float
    risk_scale: float = 1.0  # an API of an earlier release sends none
    role: Role


class _Answer(BaseModel):
    items: list[_SignalAnswer]
    cursor: str
    more: bool


class _HttpSource:
    """Asks `GET {url}/api/v1/strategy/signals`, which waits for a signal. Redirects are not followed."""

    def __init__(self, url: str, token: str | None, strategy_name: str | None) -> None:
        self.address = url
        self._strategy_name = strategy_name
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._client = httpx.Client(headers=headers, timeout=_ANSWER_S)

    def read(self, since: str | None, wait_s: float, stop: Event) -> SignalPage:
        until = time.monotonic() + wait_s
        page = self._ask(since, min(wait_s, _WAIT_S))
        while not page.items and (left := until - time.monotonic()) > 0 and not stop.wait(min(left, _LOOK_S)):
            page = self._ask(page.cursor, min(left, _WAIT_S))
        return page

    def close(self) -> None:
        with suppress(RuntimeError):  # a request of another thread is in progress
            self._client.close()

    def _ask(self, since: str | None, wait_s: float) -> SignalPage:
        asked = {"since": since, "strategy_name": self._strategy_name, "limit": PAGE, "wait": max(0.0, wait_s)}
        given = {name: str(value) for name, value in asked.items() if value is not None}
        deadline, body = time.monotonic() + wait_s + _ANSWER_S, b""
        try:
            with self._client.stream(
                "GET", f"{self.address}{PATH}", params=given, timeout=wait_s + _ANSWER_S
            ) as answer:
                for chunk in answer.iter_bytes():
                    body += chunk
                    if len(body) > _LARGEST or time.monotonic() > deadline:
                        raise httpx.ReadTimeout("too long")
        except httpx.TimeoutException:
            raise SignalsUnavailable(self.address, f"no answer within {wait_s + _ANSWER_S:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL, RuntimeError) as error:  # its message may contain the token
            raise SignalsUnavailable(self.address, f"no answer: {type(error).__name__}") from None
        if answer.status_code != httpx.codes.OK:
            raise self._refusal(answer.status_code, body)
        try:
            found = _Answer.model_validate_json(body)
            SignalCursor.read(found.cursor)
        except (ValidationError, InvalidName):
            raise SignalsUnavailable(self.address, "the answer is not this platform's") from None
        return SignalPage([Signal(**dict(each)) for each in found.items], found.cursor, found.more)

    def _refusal(self, status: int, body: bytes) -> Exception:
        try:
            problem = _Problem.model_validate_json(body)
        except ValidationError:
            problem = _Problem()
        match problem.type.rpartition("/")[2]:
            case "signal-cursor-lost":
                return SignalCursorLost(problem.cursor, problem.why)
            case "unknown-strategy":
                return UnknownStrategy(self._strategy_name or "", problem.known)
            case "forbidden":
                return Forbidden(problem.name, problem.why)
            case "invalid-token":
                return InvalidToken(problem.why)
        return SignalsUnavailable(self.address, f"HTTP {status}")


class _Problem(BaseModel):
    type: str = ""
    name: str = ""
    cursor: str = ""
    why: str = ""
    known: list[str] = []
