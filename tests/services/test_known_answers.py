"""A version keeps answers of its vetting, and runs only where it gives the same ones."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine
from sqlmodel import select

from strategy_core.domain.audit import Command
from strategy_core.domain.strategy import Action, Decision
from strategy_core.isolation.client import IsolatedStrategy
from strategy_core.isolation.pool import WorkerPool
from strategy_core.isolation.vetting import KEPT_BYTES, KnownAnswers, first_difference, vet
from strategy_core.market.synthetic import SyntheticSource
from strategy_core.services.shadow import ShadowRun, run_shadow
from strategy_core.services.versions import register_version
from strategy_core.store import versions
from strategy_core.store.engine import open_database, reading, transaction, upgrade
from strategy_core.store.tables import AlertOutbox, ShadowDecisionLog, StrategyVersion
from tests.builders import GOLD, HOUR, MONDAY, OWNER, put_version

NOW = MONDAY + 2 * HOUR


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory, market: SyntheticSource) -> tuple[dict[str, Any], bytes]:
    """The columns of a registered version, and its recorded answers."""
    engine = open_database(f"sqlite:///{tmp_path_factory.mktemp('registered')}/first.db")
    upgrade(engine)
    version = register_version(
        engine,
        Command(OWNER, MONDAY),
        market,
        strategy_name="fib_rsi",
        version="1",
        config={},
        entry_point="fib_rsi",
        symbols=[GOLD, "SILVER"],
        timeframe="1h",
    )
    with reading(engine) as session:
        content = versions.recorded_answers(session, version)
    engine.dispose()
    assert content is not None
    return version.model_dump(), content


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Engine]:
    engine = open_database(f"sqlite:///{tmp_path}/elsewhere.db")
    upgrade(engine)
    yield engine
    engine.dispose()


def put(engine: Engine, columns: dict[str, Any], content: bytes | None, digest: str | None = None) -> StrategyVersion:
    """Store the version as another machine registered it, with that machine's answers."""
    report = columns["registration_report"]
    version = put_version(
        engine, **columns | {"registration_report": report | ({"answers_digest": digest} if digest else {})}
    )
    if content is not None:
        with transaction(engine) as session:
            versions.add_answers(session, version, content)
    return version


def run(engine: Engine, market: SyntheticSource) -> ShadowRun:
    with WorkerPool() as workers:
        (result,) = run_shadow(engine, market, workers, now=NOW)
    return result


def changed(known: KnownAnswers, at: int, decision: Decision) -> KnownAnswers:
    decisions: Sequence[Decision] = [decision if i == at else each for i, each in enumerate(known.decisions)]
    return KnownAnswers(known.asks, decisions)


def test_registration_keeps_answers_within_its_bounds(registered: tuple[dict[str, Any], bytes]) -> None:
    columns, content = registered
    known = KnownAnswers.read(content)

    report = columns["registration_report"]
    assert (report["answers_windows"], report["answers_digest"]) == (64, known.digest)
    assert len(known.decisions) == sum(len(ask.positions) for ask in known.asks) == 64
    assert sum(decision.signals for decision in known.decisions) > 20
    assert len(content) < KEPT_BYTES
    assert KnownAnswers.read(known.content()).digest == known.digest


def test_a_version_runs_where_it_gives_the_same_answers(
    elsewhere: Engine, market: SyntheticSource, registered: tuple[dict[str, Any], bytes]
) -> None:
    put(elsewhere, *registered)

    result = run(elsewhere, market)

    assert (result.error, result.errors, result.logged > 0) == ("", 0, True)


def test_a_version_that_answers_otherwise_is_refused_with_an_alert(
    elsewhere: Engine, market: SyntheticSource, registered: tuple[dict[str, Any], bytes]
) -> None:
    columns, content = registered
    known = KnownAnswers.read(content)
    other = changed(known, 5, Decision(Action.SELL, 0.75, {}, "as another processor rounds"))
    put(elsewhere, columns, other.content(), other.digest)

    first, second = run(elsewhere, market), run(elsewhere, market)

    with reading(elsewhere) as session:
        alerts = session.exec(select(AlertOutbox)).all()
        logged = session.exec(select(ShadowDecisionLog)).all()
    assert "'fib_rsi' '1' may not run: not the same answers on this machine (first on GOLD 202" in first.error
    assert ": sell 0.75 at registration, " in first.error
    assert (first.error, logged) == (second.error, [])
    assert [(alert.kind, alert.severity) for alert in alerts] == [("version.tampered", "critical")]


@pytest.mark.parametrize("lost", [True, False])
def test_recorded_answers_that_were_lost_or_replaced_refuse_the_version(
    elsewhere: Engine, market: SyntheticSource, registered: tuple[dict[str, Any], bytes], lost: bool
) -> None:
    columns, content = registered
    other = changed(KnownAnswers.read(content), 0, Decision(Action.HOLD))
    put(elsewhere, columns, None if lost else other.content())

    assert "is not the build that was registered (changed: recorded answers)" in run(elsewhere, market).error


def test_a_version_of_an_earlier_release_runs_without(
    elsewhere: Engine, market: SyntheticSource, registered: tuple[dict[str, Any], bytes]
) -> None:
    columns, _ = registered
    report = {name: value for name, value in columns["registration_report"].items() if "answers" not in name}
    put(elsewhere, columns | {"registration_report": report}, None)

    assert run(elsewhere, market).error == ""


@pytest.mark.parametrize(("off", "same"), [(4e-10, True), (3e-9, False)])
def test_the_last_bits_of_a_confidence_do_not_count(
    registered: tuple[dict[str, Any], bytes], off: float, same: bool
) -> None:
    known = KnownAnswers.read(registered[1])
    at = next(i for i, decision in enumerate(known.decisions) if decision.signals)
    before = known.decisions[at]

    with IsolatedStrategy("fib_rsi", {}) as version:
        found = first_difference(version, changed(known, at, replace(before, confidence=before.confidence - off)))

    assert (found is None) is same


@pytest.mark.full
def test_a_slow_version_keeps_as_many_answers_as_100_ms_allow(market: SyntheticSource) -> None:
    candles = {GOLD: market.candles(GOLD, closed_by=MONDAY, bars=400)}
    with IsolatedStrategy("tests.services.versions_under_test:Slow", {}) as version:
        vetted = vet(version, candles, timeframe="1h")

    assert vetted.report.passed
    assert 1 <= vetted.report.answers_windows <= 10  # 10 ms each


def test_windows_that_are_too_large_are_dropped_the_oldest_first(market: SyntheticSource) -> None:
    candles = {GOLD: market.candles(GOLD, closed_by=MONDAY.replace(month=9), bars=5_900)}
    with IsolatedStrategy("fib_rsi", {"fib_lookback_bars": 2_000, "rsi_period": 200}) as version:
        vetted = vet(version, candles, timeframe="1h")

    assert vetted.known_answers is not None
    known = KnownAnswers.read(vetted.known_answers)
    (ask,) = known.asks
    assert len(vetted.known_answers) <= KEPT_BYTES
    assert 0 < vetted.report.answers_windows == len(known.decisions) < 64
    assert ask.candles.index[-1] == candles[GOLD].index[-1]  # type: ignore[union-attr]
