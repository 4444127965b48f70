"""A strategy beside the model of its rules: each wish is told to both, and after each the two are compared."""

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any

from hypothesis.stateful import RuleBasedStateMachine, invariant
from sqlalchemy import func, select
from sqlmodel import col

from strategy_core.domain.audit import Actor, Command
from strategy_core.domain.errors import NoActiveVersion, RolloutError
from strategy_core.services.maintenance import check_database
from strategy_core.services.queries import route_user
from strategy_core.services.rollback import roll_back
from strategy_core.services.transitions import strategy_state
from strategy_core.store import audit, rollouts, versions
from strategy_core.store.alerts import find_alerts
from strategy_core.store.engine import open_database, reading
from strategy_core.store.tables import Counted, GateVerdict
from tests.builders import MONDAY
from tests.pictures import picture
from tests.services.owners_model import Model
from tests.store.test_tallies import logged, tallied, told

NAME = "fib_rsi"
USERS = [f"user_{number}" for number in range(25)]
MINUTE = timedelta(minutes=1)

TERMS = ("reason", "override_reason", "if_generation", "four_eyes")  # of a command, beside actor and time


class Compared(RuleBasedStateMachine):
    """One strategy; `database` opens an empty, migrated database for each example."""

    database: Callable[[], AbstractContextManager[str]]

    def __init__(self) -> None:
        super().__init__()
        self._lent = self.database()
        self.engine = open_database(self._lent.__enter__())
        self.model = Model()
        self.now = MONDAY + 30 * MINUTE
        self.seen = picture(self.engine)
        self.compared = False
        self.taken: Counter[int] = Counter()  # of each alert, by its receiver
        self.refused: set[int] = set()
        self.acknowledged: set[int] = set()

    def teardown(self) -> None:
        """Whoever is on a canary, or on a version that bakes, can always be taken off it."""
        try:
            if self.model.canary or self.model.rollout:
                wished = self.model.roll_back(None, cause="owner", now=self.now)
                self.wish(wished, roll_back, reason="the end", version=None)
                self.all_is_as_the_model_has_it()
                assert self.model.canary is None
        finally:
            self.engine.dispose()
            self._lent.__exit__(None, None, None)

    def wish(self, refusals: set[str], call: Callable[..., Any], *, actor: str = "ana", **wished: Any) -> Any:
        """Wish something: it is granted, or refused by one of *refusals*, and then nothing has changed at all."""
        now, self.now = self.now, self.now + MINUTE
        terms = {name: wished.pop(name) for name in TERMS if name in wished}
        try:
            done = call(self.engine, Command(Actor(actor), now, **terms), strategy_name=NAME, **wished)
        except RolloutError as refused:
            said = refused
        else:
            assert not refusals, f"{call.__name__} was granted, and not refused by {refusals}"
            self.seen, self.compared = picture(self.engine), False
            return done
        assert type(said).__name__ in refusals, f"{call.__name__}: {said!r}, allowed were {refusals}"
        assert picture(self.engine) == self.seen
        return None

    def pick(self, number: int) -> str:
        names = list(self.model.versions)
        return names[number % len(names)]

    @invariant()
    def all_is_as_the_model_has_it(self) -> None:
        if self.compared:
            return
        self.compared, model = True, self.model
        with reading(self.engine) as session:
            found = {one.version: one for one in versions.list_versions(session)}
            events, alerts = audit.events(session), find_alerts(session)
            ended = [one.state for one in rollouts.list_rollouts(session)[::-1] if one.ended_at is not None]
            stands = strategy_state(session, NAME)
            routing = versions.all_routing(session, MONDAY).get(NAME)
        assert {name: (one.status, one.quarantined_at is not None) for name, one in found.items()} == {
            name: (one.status, one.quarantined) for name, one in model.versions.items()
        }
        rollout = model.rollout and {"state": model.rollout.state, "stage": model.rollout.stage}
        active, canary = model.active and model.active.name, model.canary and model.canary.name
        percent = model.percent if canary else 0.0
        assert stands == {"active": active, "canary": canary, "percent": percent, "rollout": rollout}
        assert active or not any(event.after["active"] for event in events), "one was active, and none is"
        assert ended == model.ended
        assert [(event.action, event.version) for event in events] == model.trail
        assert [alert.kind for alert in alerts] == model.alerts
        assert check_database(self.engine).holds
        self.counts_follow_from_the_rows([event.after["active"] for event in events])
        assert [self.routed(user) for user in USERS] == [model.routed(user) for user in USERS]
        assert (routing and routing.version_of(0)) == (canary if percent else active)
        assert routing is None or routing.generation == len(model.trail)

    def counts_follow_from_the_rows(self, active: list[str | None]) -> None:
        assert told(self.engine) == logged(self.engine)
        begun = [
            (after,) for before, after in zip([None, *active], active, strict=False) if after not in (None, before)
        ]
        assert tallied(self.engine, Counted.ACTIVATION) == Counter(begun)
        assert tallied(self.engine, Counted.ROLLBACK) == Counter((cause,) for cause in self.model.causes)
        columns = col(GateVerdict.gate), col(GateVerdict.verdict)
        with reading(self.engine) as session:
            said = session.execute(select(*columns, func.count()).group_by(*columns)).all()
        assert tallied(self.engine, Counted.VERDICT) == {(gate, verdict): total for gate, verdict, total in said}

    def routed(self, user: str) -> str | None:
        try:
            return route_user(self.engine, user_id=user, strategy_name=NAME, now=MONDAY).version
        except NoActiveVersion:
            return None
