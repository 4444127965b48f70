"""`rollout reports` and `rollout comparisons`: what came by itself, in a shell of 80 columns."""

from hashlib import sha256

import pytest
from sqlalchemy import Engine

from strategy_core.market.open import open_source
from strategy_core.report.owner import owner_report_page
from strategy_core.services.compare import compare_all
from strategy_core.services.owner_reports import write_reports
from tests.builders import DAY, MONDAY, put_pair
from tests.cli.conftest import FEED, Rollout
from tests.services.ramping import days


@pytest.fixture
def night(database: Engine) -> Engine:
    put_pair(database)
    now = days(database, MONDAY, 2, {"1": 0.4, "2": 0.38})
    compare_all(database, open_source(FEED, symbol=None, timeframe="1h"), now=now)
    write_reports(database, owner_report_page, now=now)
    return database


def test_a_report_is_listed_with_the_command_that_shows_it(rollout: Rollout, night: Engine) -> None:
    listed = rollout("reports", "fib_rsi").out
    (data,) = rollout("reports", "--json").data

    first, *_, last = listed.strip().splitlines()
    assert first.startswith(
        "2026-03-04 00:00  fib_rsi morning note: Nothing can be concluded on 2 against 1 yet: 20 of"
    )
    assert last.strip() == f"rollout report {data['id']}"
    page = rollout("report", data["id"], "--output", "-").out
    assert sha256(page.encode()).hexdigest() == data["html_sha256"]
    assert (DAY * 2 + MONDAY).isoformat().startswith(data["subject"])


def test_comparisons_fit_eighty_columns(rollout: Rollout, night: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")

    listed = rollout("comparisons", "fib_rsi").out

    assert "-0.020 (-0.020 to -0.020)" in listed
    assert max(map(len, listed.splitlines())) <= 80
    assert rollout("comparisons", "fib_rsi", "--since", "2026-03-05").out.startswith("no nightly comparison yet")


def test_without_reports_it_is_a_line(rollout: Rollout, database: Engine) -> None:
    assert rollout("reports").out == "no reports yet\n"
