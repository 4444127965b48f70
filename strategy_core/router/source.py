"""The Source protocol: what a router reads routing from."""

from collections.abc import Mapping
from threading import Event
from typing import Protocol

from strategy_core.domain.routing import Routing

AllRouting = Mapping[str, Routing | None]  # by strategy name, or None if no version is active


class Source(Protocol):
    """A source of all routing, used by one thread. It connects on the first read, and again after `close`.

    Attributes:
        address: its name in logs, without secrets.
    """

    address: str

    def read(self) -> AllRouting | None:
        """Return all current routing, or None if it has not changed since the last read.

        Raises:
            RoutingUnavailable: there is no answer within a few seconds. The caller then calls `close` and tries again.
        """

    def wait(self, stop: Event) -> None:
        """Wait until routing may have changed, until the next read is due, or until soon after *stop* is set.

        Raises:
            RoutingUnavailable: the connection was lost.
        """

    def close(self) -> None:
        """Close the connection. The next read opens a new one."""

    def before_fork(self) -> None:
        """Prepare for a fork. Called by another thread than `read`."""

    def after_fork_in_parent(self) -> None:
        """Continue after a fork."""

    def after_fork_in_child(self) -> None:
        """Release the copied connection without harm to the parent. The child gets its own source."""
