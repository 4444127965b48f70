"""Threads that read sources again and again into tables, also in processes that fork."""

import os
import random
import weakref
from collections.abc import Callable
from threading import Event, Lock, Thread
from typing import Any, Generic, Protocol, TypeVar

from strategy_core.domain.errors import RoutingUnavailable
from strategy_core.router.source import Source

_FIRST_S, _LONGEST_S = 0.05, 1.0  # wait between two tries, which also delays a rollback
_JOIN_S = 10.0  # longer than any source takes for one step

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)


class Refreshed(Protocol[T_contra]):
    """What a refresher keeps current."""

    clock: Callable[[], float]

    def update(self, found: T_contra | None, began: float) -> None: ...

    def warn_if_stale(self, source: str, cause: str) -> None: ...


class Refresher(Generic[T]):
    """A thread that reads the source again and again into a table, with growing waits after failures.

    It has no reference to its feed, so that a feed without references is collected, which ends the thread.
    """

    def __init__(self, source: Source[T], table: Refreshed[T]) -> None:
        self.source = source
        self.stop = Event()
        self._table = table
        self._thread = Thread(target=self._run, name="router", daemon=True)

    def load(self) -> None:
        """Read once in the calling thread. Raises RoutingUnavailable."""
        try:
            self._read()
        except RoutingUnavailable:
            self.source.close()
            raise

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        """Stop the thread and wait until it has closed the source."""
        self.stop.set()
        self._thread.join(_JOIN_S)

    def _read(self) -> None:
        began = self._table.clock()  # before the read, because it may miss later changes
        self._table.update(self.source.read(), began)

    def _run(self) -> None:
        pause = _FIRST_S
        try:
            while not self.stop.is_set():
                try:
                    self._read()
                    pause = _FIRST_S
                    self.source.wait(self.stop)
                except Exception as error:  # noqa: BLE001  if the thread ended, it would miss every rollback
                    cause = error.cause if isinstance(error, RoutingUnavailable) else type(error).__name__
                    self._table.warn_if_stale(self.source.address, cause)
                    self.source.close()
                    self.stop.wait(pause * random.uniform(0.5, 1.0))  # noqa: S311  jitter, so that not all routers retry at once
                    pause = min(2 * pause, _LONGEST_S)
        finally:
            self.source.close()


class Feed(Generic[T]):
    """Keeps a table current until it is closed or no longer referenced, also in a child process after a fork.

    Args:
        open_source: returns a new source. Called once per process.

    Raises:
        RoutingUnavailable: the first read failed.
    """

    def __init__(self, open_source: Callable[[], Source[T]], table: Refreshed[T]) -> None:
        self._open = open_source
        self._table = table
        refresher = Refresher(open_source(), table)
        refresher.load()
        self._start(refresher)
        _FEEDS.add(self)

    @property
    def source(self) -> Source[T]:
        return self._refresher.source

    def close(self) -> None:
        """Stop the thread and close the connection."""
        _FEEDS.discard(self)
        self._finalizer.detach()
        self._refresher.end()

    def restart_in_child(self) -> None:
        """Start a thread with a new connection. Until its first read, the table is as the parent left it."""
        self.source.after_fork_in_child()
        _LEFT_TO_PARENTS.append(self.source)
        self._finalizer.detach()
        self._start(Refresher(self._open(), self._table))

    def _start(self, refresher: Refresher[T]) -> None:
        self._refresher = refresher
        self._finalizer = weakref.finalize(self, refresher.stop.set)  # ends the thread with the feed
        refresher.start()


_FEEDS: weakref.WeakSet[Feed[Any]] = weakref.WeakSet()
_LEFT_TO_PARENTS: list[
    Source[Any]
] = []  # keeps references in a child, so that it does not close its parent's connections
_forking = Lock()  # serializes forks
_forked: list[Feed[Any]] = []


def _before_fork() -> None:
    _forking.acquire()
    _forked[:] = _FEEDS
    for feed in _forked:
        feed.source.before_fork()


def _after_fork_in_parent() -> None:
    for feed in _forked:
        feed.source.after_fork_in_parent()
    _forked.clear()
    _forking.release()


def _after_fork_in_child() -> None:
    for feed in _forked:
        feed.restart_in_child()
    _forked.clear()
    _forking.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
