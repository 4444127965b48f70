"""Who serves whom, written a second time from the specification: a trail's actions, replayed, give its states.

It reads what was done, never how things stood after it; only what an action cannot be told without is taken from
elsewhere: a plan's percents, the percent that an owner set by hand, and how versions stood before the trail began.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from strategy_core.store.tables import AuditEvent


@dataclass
class Open:
    """A rollout that has not ended."""

    id: UUID
    version: str
    control: str
    percents: Sequence[float]
    stage: int = 0
    state: str = "running"
    promoted: bool = False


@dataclass
class Replay:
    """One strategy, event by event.

    Attributes:
        statuses: by version; at first those that no event tells of.
        percents: of the stages, by rollout.
        unwatched: rollouts whose plan has no watch after the bake.
        ended: by rollout, how it ended.
    """

    statuses: dict[str, str]
    percents: Mapping[UUID, Sequence[float]]
    unwatched: Collection[UUID] = ()
    percent: float = 0.0
    rollout: Open | None = None
    ended: dict[UUID, str] = field(default_factory=dict)
    excluded: set[str] = field(default_factory=set)
    _activated: list[str] = field(default_factory=list)  # who became active, one after another
    _quarantined: set[str] = field(default_factory=set)
    _replaced: set[str] = field(default_factory=set)  # by a rollout that completed

    def __post_init__(self) -> None:
        self._activated = [version for version, status in self.statuses.items() if status == "active"]

    @property
    def standing(self) -> dict[str, Any]:
        rollout = self.rollout
        return {
            "active": self._with("active"),
            "canary": self._with("canary"),
            "percent": self.percent,
            "rollout": {"state": rollout.state, "stage": rollout.stage} if rollout else None,
            **({"excluded": sorted(self.excluded)} if self.excluded else {}),
        }

    def apply(self, event: AuditEvent) -> None:
        """Do what the event says was done."""
        getattr(self, f"_{event.action}")(event)

    def _register_version(self, event: AuditEvent) -> None:
        self.statuses[event.version] = "shadow"

    def _activate_version(self, event: AuditEvent) -> None:
        rollout = self.rollout
        if rollout is not None and rollout.promoted and rollout.control == event.version:
            self._take_users_off(rollout)
            self._end("rolled_back")
            return
        if rollout is not None and rollout.version == event.version:
            self._end("completed")
        elif rollout is not None:
            if self.statuses[rollout.version] == "canary":
                self._withdraw()
            self._end("aborted")
        self._quarantined.discard(event.version)
        self._serve(event.version, outgoing="retired")

    def _retire_version(self, event: AuditEvent) -> None:
        if self.statuses[event.version] == "canary":
            self.percent = 0.0
        self.statuses[event.version] = "retired"

    def _activate_canary(self, event: AuditEvent) -> None:
        self._make_canary(event.version, event.after["percent"])

    def _update_canary_percent(self, event: AuditEvent) -> None:
        self.percent = event.after["percent"]

    def _exclude_symbol(self, event: AuditEvent) -> None:
        self.excluded.add(event.after["symbol"])

    def _start_rollout(self, event: AuditEvent) -> None:
        assert event.rollout_id is not None
        control = self._with("active")
        assert control is not None
        percents = self.percents[event.rollout_id]
        self._make_canary(event.version, percents[0])
        self.rollout = Open(event.rollout_id, event.version, control, percents)

    def _approve(self, event: AuditEvent) -> None:
        self._now("running")

    _extend = _approve

    def _pause(self, event: AuditEvent) -> None:
        self._now("paused")

    def _resume(self, event: AuditEvent) -> None:
        rollout = self._now("running")
        if not rollout.promoted:
            self.percent = rollout.percents[rollout.stage]

    def _await_approval(self, event: AuditEvent) -> None:
        self._now("awaiting_approval")

    def _await_decision(self, event: AuditEvent) -> None:
        self._now("awaiting_decision")

    def _lapse(self, event: AuditEvent) -> None:
        self._now("running")

    def _advance(self, event: AuditEvent) -> None:
        rollout = self._now("running")
        rollout.stage += 1
        self.percent = rollout.percents[rollout.stage]

    def _promote(self, event: AuditEvent) -> None:
        rollout = self._now("running")
        rollout.promoted = True
        self._serve(rollout.version, outgoing="shadow")

    def _complete(self, event: AuditEvent) -> None:
        assert self.rollout is not None
        stays = None if self.rollout.id in self.unwatched else self.rollout.control
        self._end("completed")
        for version in self._replaced - self._quarantined - {stays}:
            if self.statuses[version] == "shadow":
                self.statuses[version] = "retired"

    def _roll_back(self, event: AuditEvent) -> None:
        self._quarantined.add(event.version)
        if event.rollout_id is not None:
            assert self.rollout is not None
            self._take_users_off(self.rollout)
            self._end("rolled_back")
        elif self._with("canary") == event.version:
            self._withdraw()
        else:
            if self.rollout is not None:
                self._end("aborted")
            if self._with("canary") is not None:
                self._withdraw()
            idle = [v for v, status in self.statuses.items() if status in ("retired", "shadow")]
            before = [v for v in self._activated if v in idle and v not in self._quarantined]
            self._serve(before[-1], outgoing="shadow")

    def _take_users_off(self, rollout: Open) -> None:
        self._quarantined.add(rollout.version)
        if rollout.promoted:
            self._serve(rollout.control, outgoing="shadow")
        else:
            self._withdraw()

    def _make_canary(self, version: str, percent: float) -> None:
        self.statuses[version], self.percent = "canary", percent
        self._quarantined.discard(version)

    def _withdraw(self) -> None:
        canary = self._with("canary")
        assert canary is not None
        self.statuses[canary], self.percent = "shadow", 0.0

    def _serve(self, version: str, *, outgoing: str) -> None:
        if self.statuses[version] == "canary":
            self.percent = 0.0
        served = self._with("active")
        if served is not None:
            self.statuses[served] = outgoing
        self.statuses[version] = "active"
        self._activated.append(version)

    def _now(self, state: str) -> Open:
        assert self.rollout is not None
        self.rollout.state = state
        return self.rollout

    def _end(self, state: str) -> None:
        assert self.rollout is not None
        self.ended[self.rollout.id] = state
        if state == "completed":
            self._replaced.add(self.rollout.control)
        self.rollout = None

    def _with(self, status: str) -> str | None:
        found = [version for version, each in self.statuses.items() if each == status]
        assert len(found) <= 1
        return found[0] if found else None
