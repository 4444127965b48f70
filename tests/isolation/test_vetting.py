"""Vetting passes fit versions and refuses each fault by its own check."""

import pandas as pd
import pytest

from strategy_core.isolation.client import IsolatedStrategy
from strategy_core.isolation.vetting import Report, vet

UNFIT = "tests.isolation.unfit_versions"


def report_on(entry_point: str, candles: pd.DataFrame) -> Report:
    with IsolatedStrategy(entry_point, {}) as version:
        return vet(version, {"GOLD": candles}, timeframe="1h").report


def failed(report: Report) -> list[str]:
    return [check.name for check in report.checks if not check.passed]


def test_fib_rsi_is_fit_and_the_report_says_on_how_much(long_history: pd.DataFrame) -> None:
    report = report_on("fib_rsi", long_history)

    assert report.passed
    assert report.failures == report.warnings == []
    names = ["validity", "isolation", "determinism", "memory", "clock", "look-ahead", "window", "vectorised"]
    assert [check.name for check in report.checks] == names
    assert report.signals > 0
    assert all(check.decisions >= check.signals > 0 for check in report.checks)
    assert Report.model_validate_json(report.model_dump_json()) == report


@pytest.mark.parametrize(
    ("name", "checks"),
    [
        ("PeeksAhead", ["look-ahead", "vectorised"]),
        ("PeeksAtNothingYet", ["look-ahead", "vectorised"]),
        ("Remembers", ["determinism", "memory", "look-ahead"]),
        ("Gambles", ["determinism", "memory", "look-ahead", "window"]),
        ("WarmsUpTooLittle", ["window"]),
    ],
)
def test_an_unfit_version_is_refused_by_the_check_for_its_fault(
    candles: pd.DataFrame, name: str, checks: list[str]
) -> None:
    report = report_on(f"{UNFIT}:{name}", candles)

    assert not report.passed
    assert failed(report) == checks
    assert all("decisions differ, the first on GOLD 2026-01-" in failure for failure in report.failures)


def test_a_version_that_stumbles_on_some_candles_is_refused_with_the_first(candles: pd.DataFrame) -> None:
    report = report_on(f"{UNFIT}:Stumbles", candles)

    assert failed(report) == ["validity"]
    assert "ZeroDivisionError: division by zero (unfit_versions.py, line " in report.failures[0]
    assert "the first on GOLD 2026-01-06 06:00" in report.failures[0]


def test_a_breach_refuses_even_when_the_version_goes_on(candles: pd.DataFrame) -> None:
    report = report_on(f"{UNFIT}:Writes", candles)

    assert failed(report) == ["isolation"]
    assert report.failures == ["isolation: it tried to touch the outside: open for writing: trades.log"]


def test_a_version_that_never_signals_passes_with_a_warning(candles: pd.DataFrame) -> None:
    report = report_on(f"{UNFIT}:Sleeps", candles)

    assert report.passed
    assert report.warnings == ["no decision of the sample was a signal, so signals were not checked"]


def test_nothing_is_proved_without_candles_or_without_the_version(candles: pd.DataFrame) -> None:
    short = report_on("fib_rsi", candles.iloc[:100])
    absent = report_on("fib_rsy", candles)

    assert short.failures == ["validity: too little history: a decision needs 150 candles, the longest history has 100"]
    assert failed(absent) == ["loads"]
    assert "did you mean 'fib_rsi'?" in absent.failures[0]
