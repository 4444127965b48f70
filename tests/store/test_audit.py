"""The audit trail is append-only: the database refuses edits, forks and repeated requests."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, text

from strategy_core.domain.audit import BEFORE_THE_FIRST, Actor, Command, verify_chain
from strategy_core.domain.errors import AlreadyDone, InvariantRefused, UnknownStrategy
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.plan import Plan
from strategy_core.services.audit import verify_trail
from strategy_core.services.rollback import roll_back
from strategy_core.services.rollouts import start_rollout
from strategy_core.store import alerts, audit, rollouts, versions
from strategy_core.store.engine import open_database, reading, transaction
from strategy_core.store.tables import AuditEvent
from tests.builders import MONDAY, OWNER, put_version
from tests.effort import examples

WRITERS = 8
texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))  # what PostgreSQL can store
numbers = st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts, lambda each: st.lists(each) | st.dictionaries(texts, each)
)


@pytest.fixture
def known(engine: Engine) -> Engine:
    """A strategy with an active version and no history."""
    put_version(engine, "1", Status.ACTIVE)
    return engine


def note(engine: Engine, *, actor: Actor = OWNER, **facts: Any) -> None:
    """Record an event without a change."""
    with transaction(engine) as session:
        versions.lock_strategy(session, "fib_rsi")
        told: dict[str, Any] = {"before": {}, "after": {}, "reason": "", **facts}
        audit.record(session, actor, "note", strategy_name="fib_rsi", version="1", now=MONDAY, **told)


def holds(engine: Engine) -> bool:
    with reading(engine) as session:
        strategy = versions.get_strategy(session, "fib_rsi")
        links = [audit.link_of(event) for event in audit.events(session)]
    return verify_chain(links, generation=strategy.generation, head=strategy.audit_head) == []


def run(engine: Engine, statement: str) -> None:
    with transaction(engine) as session:
        session.connection().execute(text(statement))


def test_a_change_is_the_next_event_of_its_strategy(known: Engine) -> None:
    note(known)
    note(known)

    with reading(known) as session:
        first, second = audit.events(session)
        strategy = versions.get_strategy(session, "fib_rsi")
    assert (first.position, first.previous_hash) == (1, BEFORE_THE_FIRST)
    assert (second.position, second.previous_hash) == (2, first.hash)
    assert (strategy.generation, strategy.audit_head) == (2, second.hash)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit_event SET reason = 'nothing'",
        "UPDATE audit_event SET hash = hash",
        "DELETE FROM audit_event",
        "UPDATE strategy SET generation = generation + 2",
        "UPDATE strategy SET generation = generation - 1",
        "UPDATE strategy SET generation = generation",
        "UPDATE strategy SET audit_head = ''",
    ],
)
def test_nothing_of_the_trail_is_edited(known: Engine, statement: str) -> None:
    note(known)

    with pytest.raises(InvariantRefused, match=r"is evidence|grows by one"):
        run(known, statement)

    assert holds(known)


def test_postgresql_never_empties_the_trail(postgresql_url: str) -> None:
    engine = open_database(postgresql_url)
    put_version(engine, "1", Status.ACTIVE)
    note(engine)

    with pytest.raises(InvariantRefused, match="never emptied"):
        run(engine, "TRUNCATE audit_event")

    assert holds(engine)
    engine.dispose()


@pytest.mark.parametrize(
    "changed", [{"position": 1}, {"position": 3}, {"previous_hash": "0" * 64}, {"strategy_name": "nobody"}]
)
def test_an_event_that_does_not_follow_the_newest_is_refused(known: Engine, changed: dict[str, Any]) -> None:
    note(known)

    with reading(known) as session:
        (newest,) = audit.events(session)
    follows = {"id": None, "position": 2, "previous_hash": newest.hash, "hash": "1" * 64}

    with pytest.raises(InvariantRefused, match="follows the newest"), transaction(known) as session:
        session.add(AuditEvent(**newest.model_dump() | follows | changed))

    assert holds(known)


def test_writers_at_once_make_one_chain(known: Engine) -> None:
    """Each locks the strategy's row first, so that all of them see the newest event."""
    together = Barrier(WRITERS)

    def write(writer: int) -> None:
        together.wait()
        for turn in range(10):
            note(known, actor=Actor(f"writer {writer}"), reason=f"{turn}")

    with ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(write, range(WRITERS)))

    with reading(known) as session:
        events = audit.events(session)
    assert [event.position for event in events] == list(range(1, 10 * WRITERS + 1))
    assert holds(known)


def test_writers_that_lock_nothing_make_no_fork(known: Engine) -> None:
    """The database protects the chain also from faulty code: only one of them succeeds."""
    together = Barrier(WRITERS)

    def write(writer: int) -> bool:
        together.wait()
        try:
            with transaction(known) as session:
                audit.record(
                    session,
                    Actor(f"writer {writer}"),
                    "note",
                    strategy_name="fib_rsi",
                    version="1",
                    before={},
                    after={},
                    reason="",
                    now=MONDAY,
                )
        except InvariantRefused:
            return False
        return True

    with ThreadPoolExecutor(WRITERS) as pool:
        written = sum(pool.map(write, range(WRITERS)))

    with reading(known) as session:
        assert versions.get_strategy(session, "fib_rsi").generation == len(audit.events(session)) == written >= 1
    assert holds(known)


def test_a_wish_under_a_known_idempotency_key_changes_nothing(known: Engine) -> None:
    put_version(known, "2")
    ana, ben = Actor("ana", idempotency_key="k1"), Actor("ben", idempotency_key="k1")
    rollout = start_rollout(known, Command(ana, MONDAY), strategy_name="fib_rsi", version="2", plan=Plan())
    roll_back(known, Command(ben, MONDAY, "harm"), strategy_name="fib_rsi")

    with pytest.raises(AlreadyDone) as refused:
        start_rollout(
            known, Command(ana, MONDAY, override_reason="again"), strategy_name="fib_rsi", version="2", plan=Plan()
        )

    assert (refused.value.actor, refused.value.idempotency_key) == ("ana", "k1")
    with reading(known) as session:
        assert rollouts.open_rollout(session, "fib_rsi") is None
        assert [each.id for each in rollouts.list_rollouts(session)] == [rollout.id]
        assert versions.get_strategy(session, "fib_rsi").generation == 2
        assert len(alerts.find_alerts(session)) == 2
    assert holds(known)


def test_changes_without_a_key_are_never_taken_for_one(known: Engine) -> None:
    note(known)
    note(known)

    assert holds(known)


def test_an_unknown_strategy_has_no_trail(engine: Engine) -> None:
    with pytest.raises(UnknownStrategy), transaction(engine) as session:
        audit.record(session, OWNER, "note", strategy_name="x", version="1", before={}, after={}, reason="", now=MONDAY)


@pytest.mark.parametrize(
    "value",
    [0.0, -0.0, 33.33, 1e-7, 1e22, 1.5e300, 5e-324, 2**53 + 1, 2**63, "ü 日本 \u2028 \"'\\", None, True, [], {}],
)
def test_a_fact_has_the_hash_that_it_was_written_with(known: Engine, value: object) -> None:
    note(known, before={"x": value}, after={"x": [value]}, reason=f"{value}")

    assert holds(known)


@settings(max_examples=examples(40), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(texts, values), texts)
def test_any_facts_have_the_hash_that_they_were_written_with(known: Engine, facts: Any, reason: str) -> None:
    note(known, before=facts, reason=reason)

    assert holds(known)


def test_what_a_change_rests_on_stands_in_its_event(known: Engine) -> None:
    note(known, actor=Actor("ana", request_id="r1", idempotency_key="k1"), evidence=["a", "b"])

    with reading(known) as session:
        (event,) = audit.events(session)
    assert (event.request_id, event.idempotency_key, event.evidence) == ("r1", "k1", ["a", "b"])
    assert [trail.breaks for trail in verify_trail(known).trails] == [[]]
