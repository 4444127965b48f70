"""What owners may wish of a strategy, and what comes of it, told anew from what they were promised; no product code.

Each wish returns the names of the errors that may answer it: none when it is granted, and has changed the model.
"""

from dataclasses import dataclass
from datetime import datetime

from tests.services.ramp_model import LATE, LONG_AGO, Rollout, Standing, Terms, Version

Refusals = set[str]


@dataclass
class Model(Standing):
    def activate(self, name: str, *, override: bool, second: bool, actor: str, now: datetime) -> Refusals:
        wanted = self.versions[name]
        refused = {"IllegalTransition"} if wanted.status == "active" else set()
        refused |= {"Quarantined"} if wanted.quarantined and not override else set()
        refused |= self._second(second and self.rollout is not None and self.rollout.version == name, actor)
        if refused:
            return refused
        rollout, outgoing = self.rollout, self.active
        if rollout and rollout.promoted and rollout.control == name:
            self._undo(rollout, now)
            self._end("rolled_back")
        else:
            if rollout:
                self._end("completed" if rollout.version == name else "aborted")
                if rollout.version != name:
                    self._withdraw(quarantine=False)
            if wanted.status == "canary":
                self.percent = 0.0
            if outgoing:
                outgoing.status = "retired"
            wanted.status, wanted.quarantined, wanted.activated = "active", False, now
        self.trail.append(("activate_version", name))
        return set()

    def retire(self, name: str) -> Refusals:
        wanted = self.versions[name]
        refused = {"IllegalTransition"} if wanted.status in ("active", "retired") else set()
        if self.rollout and name in (self.rollout.version, self.rollout.control):
            refused |= {"RolloutOpen"}
        if refused:
            return refused
        if wanted.status == "canary":
            self.percent = 0.0
        wanted.status = "retired"
        self.trail.append(("retire_version", name))
        return set()

    def _may_ramp(self, name: str, override: bool) -> Refusals:
        wanted, canary = self.versions[name], self.canary
        refused = {"RolloutOpen"} if self.rollout else set()
        refused |= {"NoActiveVersion"} if self.active is None else set()
        refused |= {"IllegalTransition"} if canary or wanted.status != "shadow" else set()
        return refused | ({"Quarantined"} if wanted.quarantined and not override else set())

    def _serve(self, name: str, percent: float, now: datetime) -> None:
        wanted = self.versions[name]
        wanted.status, wanted.quarantined = "canary", False
        self.percent, self.canary_since = percent, now

    def begin_canary(self, name: str, percent: float, *, override: bool, now: datetime) -> Refusals:
        refused = self._may_ramp(name, override)
        if not refused:
            self._serve(name, percent, now)
            self.trail.append(("activate_canary", name))
        return refused

    def set_percent(self, percent: float, *, second: bool, actor: str) -> Refusals:
        if self.canary is None:
            return {"NoCanary"}
        if self.rollout and self.rollout.state != "paused":
            return {"RolloutOpen"}
        if self.rollout and percent > self.percent and (refused := self._second(second, actor)):
            return refused
        self.percent = percent
        self.trail.append(("update_canary_percent", self.canary.name))
        return set()

    def start(self, name: str, terms: Terms, *, override: bool, actor: str, now: datetime) -> Refusals:
        wanted, active = self.versions[name], self.active
        refused = set() if terms.armed else {"UnarmedPlan"}
        refused |= {"Incomparable"} if active and active.symbol != wanted.symbol else set()
        by_hand = wanted.status == "canary" and self.rollout is None
        refused |= set() if by_hand else self._may_ramp(name, override)
        if refused:
            return refused
        assert active is not None
        if by_hand:
            self.percent = terms.percents[0]
        else:
            self._serve(name, terms.percents[0], now)
        self.rollout = Rollout(name, active.name, terms, actor, now)
        self.rollout.enter(now)
        self.trail.append(("start_rollout", name))
        self.alerts.append("rollout.started")
        return set()

    def approve(self, *, second: bool, actor: str, stated: bool) -> Refusals:
        rollout = self.rollout
        if rollout is None:
            return {"UnknownRollout"}
        if rollout.state != "awaiting_approval" or not rollout.passed:
            return {"NotAwaiting"}
        if refused := self._second(second, actor):
            return refused
        if rollout.stage + 2 == len(rollout.terms.percents) and not stated:
            return {"MissingReason"}
        rollout.state, rollout.approved = "running", rollout.stage + 1
        self.trail.append(("approve", rollout.version))
        return set()

    def pause(self) -> Refusals:
        if self.rollout is None:
            return {"UnknownRollout"}
        if self.rollout.state == "paused":
            return {"NotAwaiting"}
        self.rollout.state, self.rollout.approved = "paused", None
        self.trail.append(("pause", self.rollout.version))
        return set()

    def resume(self, now: datetime) -> Refusals:
        rollout = self.rollout
        if rollout is None:
            return {"UnknownRollout"}
        if rollout.state != "paused":
            return {"NotAwaiting"}
        rollout.enter(now)
        if not rollout.promoted:
            stage = rollout.terms.percents[rollout.stage]
            self.percent = min(self.percent, stage) if rollout.blind_since else stage
        self.trail.append(("resume", rollout.version))
        return set()

    def extend(self, now: datetime) -> Refusals:
        if self.rollout is None:
            return {"UnknownRollout"}
        if self.rollout.state != "awaiting_decision":
            return {"NotAwaiting"}
        self.rollout.state, self.rollout.extended = "running", now
        self.trail.append(("extend", self.rollout.version))
        return set()

    def advance(self, *, second: bool, actor: str, now: datetime) -> Refusals:
        rollout = self.rollout
        if rollout is None:
            return {"UnknownRollout"}
        unseen = now - (rollout.ticked or rollout.started) > LATE
        harmful = self.errors_in_a_row(rollout) >= 3
        refused = {"NotAwaiting"} if rollout.state != "awaiting_decision" else set()
        refused |= {"NotAwaiting"} if rollout.blind_since or unseen or harmful else set()
        if refused | self._second(second, actor):
            return refused | self._second(second, actor)
        self._step(rollout, "promote" if rollout.stage + 1 == len(rollout.terms.percents) else "advance", "", now)
        return set()

    def roll_back(self, name: str | None, *, cause: str, now: datetime) -> Refusals:
        rollout, canary, active = self.rollout, self.canary, self.active
        taken_off = name
        if rollout and name in (None, rollout.version):
            taken_off = rollout.version
            self._undo(rollout, now)
            self._end("rolled_back")
        elif canary and name in (None, canary.name):
            taken_off = canary.name
            self._withdraw(quarantine=True)
        else:
            before = self.before_the_active()
            if name is None or active is None or name != active.name or before is None:
                last = self.trail[-1] if self.trail else ("", "")
                done = last[0] == "roll_back" and name in (None, last[1])
                return {"AlreadyRolledBack" if done else "NothingToRollBack"}
            if rollout:
                self._end("aborted")
            self._withdraw(quarantine=False)
            active.status, active.quarantined = "shadow", True
            before.status, before.activated = "active", now
        self._rolled_back(str(taken_off), cause)
        return set()

    def serves_since(self, name: str | None) -> datetime | None:
        """Since when what an alert means serves users: the version that it names, or whichever is on its way."""
        if self.rollout and name in (None, self.rollout.version):
            return self.rollout.started
        if self.canary and name in (None, self.canary.name):
            return self.canary_since
        return self.active.activated if self.active and name == self.active.name else None

    def before_the_active(self) -> Version | None:
        """Who served last of those that serve nobody now and did no harm."""
        idle = ("retired", "shadow")
        served = [one for one in self.versions.values() if one.status in idle and not one.quarantined]
        return max((one for one in served if one.activated), key=lambda one: one.activated or LONG_AGO, default=None)

    def _second(self, demanded: bool, actor: str) -> Refusals:
        """Whoever started the rollout may not let it go on where a second owner is demanded."""
        return {"FourEyes"} if demanded and self.rollout and self.rollout.starter == actor else set()
