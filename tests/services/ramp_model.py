"""Who serves, and what time and evidence do to a rollout, told anew from what owners were promised; no product code."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import sha256

HOUR = timedelta(hours=1)
LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)
LATE = 2 * HOUR  # a decision may be, before a rollout is blind
DWELL = 2 * HOUR  # in each stage, at least
TOLD = {
    "advance": "rollout.advanced",
    "await_approval": "rollout.awaiting_approval",
    "await_decision": "rollout.awaiting_decision",
    "lapse": "rollout.approval_lapsed",
    "promote": "rollout.promoted",
    "complete": "rollout.completed",
}


def candle_before(moment: datetime) -> datetime:
    """Return when the newest candle opened that has closed by then; they never rest here."""
    return moment.replace(minute=0, second=0, microsecond=0) - HOUR


@dataclass
class Terms:
    """What a plan says, as far as these tests vary it."""

    percents: tuple[float, ...] = (5.0, 25.0, 100.0)
    approve_before: tuple[float, ...] = (100.0,)
    on_inconclusive: str = "hold"
    maximum: timedelta = 10 * HOUR
    blind_limit: timedelta = 5 * HOUR
    bake: timedelta = 6 * HOUR
    armed: bool = True
    watch: bool = True  # after the bake, against the predecessor
    answerable: bool = True  # else a gate waits for slots that never come


@dataclass
class Version:
    name: str
    symbol: str
    status: str = "shadow"
    quarantined: bool = False
    activated: datetime | None = None
    said: dict[datetime, str] = field(default_factory=dict)  # by candle


@dataclass
class Rollout:
    version: str
    control: str
    terms: Terms
    starter: str
    started: datetime
    state: str = "running"
    stage: int = 0
    entered: datetime = LONG_AGO
    extended: datetime = LONG_AGO
    approved: int | None = None
    blind_since: datetime | None = None
    promoted: datetime | None = None
    ticked: datetime | None = None
    passed: bool = False  # every armed gate, when they last spoke

    def enter(self, now: datetime) -> None:
        self.state, self.entered, self.extended = "running", now, now


@dataclass
class Standing:
    """Who serves whom, and what is told of how that came."""

    versions: dict[str, Version] = field(default_factory=dict)
    percent: float = 0.0
    canary_since: datetime | None = None
    rollout: Rollout | None = None
    ended: list[str] = field(default_factory=list)
    replaced: set[str] = field(default_factory=set)  # by a rollout that completed
    trail: list[tuple[str, str]] = field(default_factory=list)  # action and version
    alerts: list[str] = field(default_factory=list)
    causes: list[str] = field(default_factory=list)
    blindness_seen: datetime | None = None
    heard: set[str] = field(default_factory=set)

    @property
    def active(self) -> Version | None:
        return self._with("active")

    @property
    def canary(self) -> Version | None:
        return self._with("canary")

    def _with(self, status: str) -> Version | None:
        found = [one for one in self.versions.values() if one.status == status]
        assert len(found) < 2
        return found[0] if found else None

    def routed(self, user: str) -> str | None:
        """Whom a user gets: by the first two digits of his hash, then by the next two."""
        number = int(sha256(user.encode()).hexdigest(), 16)
        place = number % 100 * 100 + number // 100 % 100
        if self.active is None:
            return None
        return self.canary.name if self.canary and place < round(self.percent * 100) else self.active.name

    def _undo(self, rollout: Rollout, now: datetime) -> None:
        """Take the users off the rollout's version."""
        if not rollout.promoted:
            self._withdraw(quarantine=True)
            return
        harmful, control = self.versions[rollout.version], self.versions[rollout.control]
        harmful.status, harmful.quarantined = "shadow", True
        control.status, control.activated = "active", now

    def _withdraw(self, *, quarantine: bool) -> None:
        if self.canary:
            self.percent = 0.0
            self.canary.quarantined |= quarantine
            self.canary.status = "shadow"

    def _end(self, state: str) -> None:
        if self.rollout and state == "completed":
            self.replaced.add(self.rollout.control)
        self.rollout = None
        self.ended.append(state)

    def _rolled_back(self, name: str, cause: str) -> None:
        self.trail.append(("roll_back", name))
        self.alerts.append("rollout.rolled_back")
        self.causes.append(cause)

    def errors_in_a_row(self, rollout: Rollout) -> int:
        said = self.versions[rollout.version].said
        words = [said[candle] for candle in sorted(said) if candle >= rollout.started]
        return next((place for place, word in enumerate(reversed(words)) if word != "error"), len(words))

    def tick(self, asked: datetime, *, works: bool) -> str | None:
        """Take the one step that evidence allows; None when nothing is open."""
        rollout = self.rollout
        if rollout is None:
            self._note_blindness(False, asked)
            return None
        now = max(asked, rollout.ticked or rollout.started)
        settled = self._settled(rollout)
        due = candle_before(now - LATE)
        blind = not works or (due >= rollout.started and (settled is None or settled < due))
        fresh = not blind and settled is not None and settled >= rollout.entered
        if rollout.ticked != now:  # what the gates say at one moment is written down once
            rollout.passed = fresh and rollout.terms.answerable
        rollout.ticked, rollout.blind_since = now, (rollout.blind_since or now) if blind else None
        step, cause = self._ruled(rollout, fresh, now)
        if step == "hold" and rollout.approved == rollout.stage + 1:
            step = "lapse"
        self._step(rollout, step, cause, now)
        self._note_blindness(blind and step != "roll_back", asked)
        return step

    def _note_blindness(self, blind: bool, asked: datetime) -> None:
        """One alert when it begins, and one when it is over, unless its rollout is over too."""
        if blind:
            if self.blindness_seen is None:
                self.alerts.append("rollout.blind")
            self.blindness_seen = asked
        elif self.blindness_seen is not None and asked != self.blindness_seen:  # hours apart
            self.alerts += ["incident.ended"] if self.rollout else []
            self.blindness_seen = None

    def _settled(self, rollout: Rollout) -> datetime | None:
        """Return the newest candle that both have decided since the rollout began; an error decides nothing."""
        newest = [
            max(
                (at for at, word in self.versions[name].said.items() if word != "error" and at >= rollout.started),
                default=None,
            )
            for name in (rollout.version, rollout.control)
        ]
        return None if None in newest else min(at for at in newest if at)

    def _ruled(self, rollout: Rollout, fresh: bool, now: datetime) -> tuple[str, str]:
        """Return the step, and of a rollback its cause."""
        terms = rollout.terms
        if self.errors_in_a_row(rollout) >= 3:
            return "roll_back", "errors"
        if rollout.blind_since:
            return ("roll_back", "blind") if now - rollout.blind_since >= terms.blind_limit else ("hold", "")
        if rollout.state in ("paused", "awaiting_decision"):
            return "hold", ""
        if rollout.promoted:
            return ("complete" if fresh and now - rollout.promoted >= terms.bake else "hold"), ""
        if now - rollout.entered < DWELL:
            return "hold", ""
        if not (fresh and terms.answerable):
            if now - rollout.extended < terms.maximum:
                return "hold", ""
            return ("roll_back", "unanswered") if terms.on_inconclusive == "rollback" else ("await_decision", "")
        if rollout.stage + 1 == len(terms.percents):
            return "promote", ""
        asks = terms.percents[rollout.stage + 1] in terms.approve_before and rollout.approved != rollout.stage + 1
        return ("await_approval" if asks else "advance"), ""

    def _step(self, rollout: Rollout, step: str, cause: str, now: datetime) -> None:
        waits = {"await_approval": "awaiting_approval", "await_decision": "awaiting_decision"}
        if step == "hold" or waits.get(step) == rollout.state:
            return
        if step in waits:
            rollout.state, rollout.approved = waits[step], None
        elif step == "lapse":
            rollout.approved = None
        elif step == "advance":
            rollout.stage += 1
            rollout.enter(now)
            self.percent = rollout.terms.percents[rollout.stage]
        elif step == "promote":
            winner, control = self.versions[rollout.version], self.versions[rollout.control]
            winner.status, winner.activated, control.status, self.percent = "active", now, "shadow", 0.0
            rollout.enter(now)
            rollout.promoted = now
        elif step == "complete":
            self._end("completed")
            for name in self.replaced - ({rollout.control} if rollout.terms.watch else set()):
                version = self.versions[name]
                if version.status == "shadow" and not version.quarantined:
                    version.status = "retired"
        else:
            self._undo(rollout, now)
            self._end("rolled_back")
            self._rolled_back(rollout.version, cause)
            return
        self.trail.append((step, rollout.version))
        self.alerts.append(TOLD[step])
