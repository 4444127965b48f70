"""Where a router reads routing from: one thread's own, bounded in time, and never shared with a forked child."""

from collections.abc import Mapping
from threading import Event
from typing import Protocol

from strategy_core.domain.routing import Routing

Found = Mapping[str, Routing | None]  # by strategy; None where no version is active


class Source(Protocol):
    """One place that tells all routing; it connects when it is read, and again after `close`.

    Attributes:
        address: what a log may name it by; no secret.
    """

    address: str

    def read(self) -> Found | None:
        """Return all routing as it stands now; None when it still is what the last read returned.

        Raises:
            RoutingUnavailable: it cannot be had within a few seconds; `close` comes next, then another try.
        """

    def wait(self, stop: Event) -> None:
        """Return when something may have changed, when it is time to look again, or soon after *stop* is set.

        Raises:
            RoutingUnavailable: the connection was lost meanwhile.
        """

    def close(self) -> None:
        """Give back what is open; the next read begins anew."""

    def before_fork(self) -> None:
        """Make this process fit to be forked; called by another thread than reads."""

    def after_fork_in_parent(self) -> None:
        """Go on."""

    def after_fork_in_child(self) -> None:
        """Let go of what is the parent's, without harm to it: the child has a source of its own."""
