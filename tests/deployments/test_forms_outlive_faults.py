"""Owners post forms while processes are killed and PostgreSQL or Redis is away: no form is lost, none is done twice.

One installation lives through all faults, one after another. Each form is about a strategy of its own, so that neither
the order of the forms nor a refusal decides about the result.
"""

import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import httpx
import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError
from sqlmodel import col, select

from flows.runtime import INTERRUPTED
from strategy_core.domain.audit import Command
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.plan import Plan
from strategy_core.market.source import ReplayClock
from strategy_core.services.database import start_clock
from strategy_core.services.rollouts import start_rollout
from strategy_core.store import audit, rollouts
from strategy_core.store.engine import open_database, reading
from strategy_core.store.tables import OwnerRequest
from tests.builders import MONDAY, OWNER, put_version
from tests.deployments.composed import LASTING, Installation, installed, until
from tests.endpoint import Endpoint, serving
from tests.services.outbox import ids, outbox, url_of

pytestmark = [pytest.mark.full, pytest.mark.xdist_group("faults")]

FEED = "synthetic:GOLD?symbols=1&start=2026-01-01&days=100"
BEGUN = MONDAY + timedelta(minutes=5)  # the clock is real from then on, and the next candle is almost an hour away
DONE = {  # the event that a form leaves in the audit trail, and the state of its rollout
    "start-canary": ("start_rollout", "running"),
    "pause": ("pause", "paused"),
    "rollback": ("roll_back", "rolled_back"),
}
FORMS = {"start-canary": 4, "pause": 2, "rollback": 5}  # during one fault, each about a strategy of its own
FINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fault:
    """What ends, and for how long.

    Attributes:
        ends: the services that end.
        away_s: until they are started again.
        rolls_back: forms are taken and done while the services are away.
        how: ends one of them.
    """

    ends: tuple[str, ...]
    away_s: float = 0.0
    rolls_back: bool = False
    how: Callable[[Installation, str], None] = Installation.kill


FAULTS = {
    "what no form needs is killed": Fault(("maintainer", "api", "exporter", "prefect-services"), rolls_back=True),
    "Redis is killed and away": Fault(("redis",), away_s=20.0),
    "the clock is killed": Fault(("worker",)),
    "Prefect's server is killed": Fault(("prefect",)),
    "PostgreSQL is killed": Fault(("postgresql",)),
    "PostgreSQL is restarted": Fault(("postgresql",), how=lambda made, _: made.stop_postgresql()),
    "PostgreSQL is away": Fault(("postgresql",), away_s=60.0, how=lambda made, _: made.stop_postgresql()),
}


@dataclass
class Form:
    """What an owner asks for, in one strategy.

    Attributes:
        when: before, in mid-transaction, during or after the fault.
        run: the accepted flow run.
    """

    name: str
    strategy: str
    when: str
    run: str = ""


@dataclass
class Owner:
    """Posts forms to Prefect, as its UI does."""

    made: Installation
    engine: Engine
    receiver: Endpoint
    deployments: dict[str, str]
    forms: dict[str, list[Form]] = field(default_factory=dict)  # by fault
    used: Counter[str] = field(default_factory=Counter)

    def next_form(self, name: str, when: str) -> Form:
        """Return a form about a strategy that no other form is about."""
        self.used[name] += 1
        return Form(name, f"{name}-{self.used[name]:02}", when)

    def post(self, name: str, when: str) -> Form:
        form = self.next_form(name, when)
        self.insist(form)
        return form

    def insist(self, form: Form) -> None:
        """Post a form until the server takes it."""
        until(lambda: True if self.try_to_post(form) else None, f"Prefect takes {form}")

    def try_to_post(self, form: Form) -> bool:
        given = {"strategy_name": form.strategy, "owner": "ann", "reason": form.when}
        given |= {"version": "2"} if form.name == "start-canary" else {}
        path = f"/deployments/{self.deployments[form.name]}/create_flow_run"
        with self.made.prefect() as prefect, suppress(httpx.HTTPError):
            answer = prefect.post(path, json={"parameters": given}, timeout=20)
            form.run = answer.raise_for_status().json()["id"]
        return bool(form.run)

    def runs(self) -> dict[str, list[dict[str, Any]]]:
        """Return all runs of each strategy: one whose answer was lost is there in spite of the error."""
        wanted = {"deployments": {"id": {"any_": [self.deployments[name] for name in FORMS]}}, "limit": 200}
        with self.made.prefect() as prefect:
            runs = prefect.post("/flow_runs/filter", json=wanted).raise_for_status().json()
        assert len(runs) < 200, "there may be more"
        found: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for each in runs:
            found[each["parameters"]["strategy_name"]].append(each)
        return found

    def wait_for(self, forms: Sequence[Form]) -> None:
        """Wait until each form has a final state, and its end is written down."""
        until(lambda: None if self._open(forms) else True, "the forms have ended")

    def _open(self, forms: Sequence[Form]) -> list[Form]:
        try:
            runs = self.runs()
            with reading(self.engine) as session:
                ended = set(session.exec(select(OwnerRequest.id).where(col(OwnerRequest.ended_at).is_not(None))).all())
        except (httpx.HTTPError, DBAPIError):
            return list(forms)
        states = {form.strategy: [each["state"] for each in runs[form.strategy]] for form in forms}
        return [
            form
            for form in forms
            if UUID(form.run) not in ended
            or any(each["type"] not in FINAL or each["name"] == INTERRUPTED for each in states[form.strategy])
        ]

    @contextmanager
    def in_mid_transaction(self, *names: str) -> Iterator[list[Form]]:
        """Post forms, and yield them when each of them waits for its strategy's row."""
        forms = [self.next_form(name, "in mid-transaction") for name in names]
        with self.engine.connect() as other:
            locked = text("SELECT name FROM strategy WHERE name = ANY(:names) FOR UPDATE")
            other.execute(locked, {"names": [each.strategy for each in forms]})
            for form in forms:
                self.insist(form)
            until(lambda: True if self._waiting() >= len(forms) else None, "the forms wait for their strategies' rows")
            yield forms
            other.invalidate()

    def _waiting(self) -> int:
        query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%FROM strategy%'"
        with self.engine.connect() as connection:
            return int(connection.execute(text(query)).scalar_one())

    def lived_through(self, fault: str) -> list[Form]:
        """Let a fault happen, once, and return the forms of that time."""
        if fault not in self.forms:
            self.forms[fault] = self._live_through(FAULTS[fault])
        return self.forms[fault]

    def _live_through(self, fault: Fault) -> list[Form]:
        before = [self.post(name, "before") for name in ("start-canary", "rollback")]
        with self.in_mid_transaction("pause", "rollback") as interrupted:
            before += [self.post(name, "just before") for name in ("start-canary", "rollback")]
            for name in fault.ends:
                fault.how(self.made, name)
            began = time.monotonic()
        try:
            during = [self.next_form(name, "during") for name in ("rollback", "start-canary", "pause")]
            for form in during:
                (self.insist if fault.rolls_back else self.try_to_post)(form)
            if fault.rolls_back:
                self.wait_for(during)
            time.sleep(max(0.0, fault.away_s - (time.monotonic() - began)))
        finally:
            log.info("ended meanwhile: %s", self._start_again())
        for form in during:
            if not form.run:
                form.when = "during, and again"
                self.insist(form)
        after = [self.post(name, "after") for name in ("start-canary", "rollback")]
        self.wait_for(after)
        return [*before, *interrupted, *during, *after]

    def _start_again(self) -> list[str]:
        """Start what is not there, as Docker does, and return the names of the services."""
        if "postgresql" not in self.made.processes:
            self.made.start_postgresql()
        if "redis" not in self.made.processes:
            self.made.start_redis()
        return self.made.start_ended()


def prepare(url: str) -> None:
    """Write strategies with an active version, and a shadow version or an open rollout."""
    engine = open_database(url)
    for name, times in FORMS.items():
        for number in range(times * len(FAULTS)):
            strategy = f"{name}-{number + 1:02}"
            put_version(engine, "1", Status.ACTIVE, strategy_name=strategy, at=BEGUN, recorded=True)
            put_version(engine, "2", strategy_name=strategy, at=BEGUN, recorded=True)
            if name != "start-canary":
                start_rollout(engine, Command(OWNER, BEGUN), strategy_name=strategy, version="2", plan=Plan())
    start_clock(engine, ReplayClock(datetime.now(UTC), BEGUN))
    engine.dispose()


@pytest.fixture(scope="module")
def owner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Owner]:
    folder = tmp_path_factory.mktemp("faults")
    with (
        serving() as receiver,
        installed(folder, FEED, prepare, ROLLOUT_ALERT_URLS=url_of(receiver)) as made,
        made.prefect() as prefect,
    ):
        found = prefect.post("/deployments/filter", json={}).raise_for_status().json()
        engine = open_database(made.database_url)
        yield Owner(made, engine, receiver, {each["name"]: each["id"] for each in found})
        engine.dispose()


@pytest.mark.parametrize("fault", FAULTS)
def test_forms_are_done_again_after_a_fault(owner: Owner, fault: str) -> None:
    forms = owner.lived_through(fault)

    owner.wait_for([form for form in forms if form.when == "after"])


@pytest.mark.parametrize("fault", FAULTS)
def test_each_form_that_was_taken_is_done_once(owner: Owner, fault: str) -> None:
    """What was in mid-transaction is taken over after a minute, while the next fault may stand."""
    forms = owner.lived_through(fault)

    owner.wait_for(forms)
    runs = owner.runs()
    for form in forms:
        with reading(owner.engine) as session:
            made = [each for each in audit.events(session, form.strategy) if each.actor == "ann"]
            (rollout,) = rollouts.list_rollouts(session, form.strategy)
        assert [(each.action, rollout.state) for each in made] == [DONE[form.name]], form
        (run,) = [each for each in runs[form.strategy] if each["id"] == made[0].idempotency_key]
        assert run["state"]["type"] == "COMPLETED", form
        log.info("%s, %s: %s in %.1f s", fault, form.when, form.name, seconds_of(run))


def test_every_service_is_healthy_no_message_came_twice_and_the_trail_is_whole(owner: Owner) -> None:
    raised = outbox(owner.engine)

    until(lambda: True if len(set(ids(owner.receiver))) >= len(raised) else None, "every alert has come")
    assert [each for each, times in Counter(ids(owner.receiver)).items() if times > 1] == []
    assert owner.made.start_ended() == []
    for name in LASTING:
        owner.made.await_health(name)
    assert owner.made.run("rollout", "audit", "verify").count("verified") == sum(FORMS.values()) * len(FAULTS)


def seconds_of(run: dict[str, Any]) -> float:
    created, ended = (datetime.fromisoformat(run[name]) for name in ("created", "end_time"))
    return (ended - created).total_seconds()
