"""Positions in the shell: who manages them, how far a version has drained, and what is refused."""

from typing import Any

import pytest
from sqlalchemy import Engine

from strategy_core.domain.audit import Command
from strategy_core.domain.plan import Plan
from strategy_core.services.live_trades import ingest
from strategy_core.services.rollback import roll_back
from strategy_core.services.rollouts import start_rollout
from tests.builders import DAY, HOUR, MONDAY, OWNER, put_pair, put_version
from tests.cli.conftest import Rollout, set_clock

WHY = ("--reason", "its code has a defect")


@pytest.fixture
def drained(database: Engine, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """Version 2 was the canary and rolled back. It manages two of the three open positions."""
    put_pair(database)
    put_version(database, "3")
    start_rollout(database, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="2", plan=Plan())
    ingest(database, [report(f"t{number}", version) for number, version in enumerate("122")], now=MONDAY + DAY)
    roll_back(database, Command(OWNER, MONDAY + 2 * HOUR, "news"), strategy_name="fib_rsi")
    set_clock(monkeypatch, MONDAY + DAY)
    return database


def report(trade_id: str, version: str) -> dict[str, Any]:
    facts = {"trade_id": trade_id, "user_id": f"u-{trade_id}", "strategy_name": "fib_rsi", "version": version}
    return {**facts, "symbol": "GOLD", "opened_at": MONDAY + HOUR}


def test_positions_are_shown_by_manager(drained: Engine, rollout: Rollout) -> None:
    shown = rollout("positions", "fib_rsi")

    assert "3 open positions of fib_rsi: 1 by 1, 2 by 2" in shown.out
    assert "2 draining 2 → 2" in shown.out
    assert [
        row["trade_id"] for row in rollout("positions", "fib_rsi", "--version", "2", "--json").data["positions"]
    ] == [
        "t1",
        "t2",
    ]
    assert "2 2 → 2" in rollout("status", "fib_rsi").out


def test_a_retirement_names_the_positions_that_it_would_orphan(drained: Engine, rollout: Rollout) -> None:
    refused = rollout("retire", "fib_rsi", "2")
    assert refused.code == 5
    assert "'fib_rsi' '2' manages 2 open positions; let them drain, hand them over" in refused.err

    assert rollout("retire", "fib_rsi", "2", "--orphans-to", "1", *WHY).out == "fib_rsi 2 is retired\n"
    assert "3 open positions of fib_rsi: 3 by 1" in rollout("positions", "fib_rsi").out


def test_a_version_drains_and_the_rest_is_told(drained: Engine, rollout: Rollout) -> None:
    assert rollout("drain", "fib_rsi", "2").out == "2 draining 2 → 2\n"
    assert (
        "2 of them are to be closed after 0"
        in rollout("drain", "fib_rsi", "2", "--flatten-after", "0", *WHY, "--yes").out
    )
    assert "--reason" in rollout("drain", "fib_rsi", "2", "--flatten-after", "3d", "--yes").err

    assert [(row["trade_id"], row["why"]) for row in rollout("exits", "--json").data] == [
        ("t1", "flatten"),
        ("t2", "flatten"),
    ]
    assert rollout("exits", "--since", "2", "--json").data == []
    assert "cannot continue after exit 3: the newest is 2" in rollout("exits", "--since", "3").err


def test_positions_are_handed_over(drained: Engine, rollout: Rollout) -> None:
    done = rollout("hand-over", "fib_rsi", "1", "3", *WHY, "--yes")

    assert done.out == "1 positions of fib_rsi 1 are managed by 3\n"
    assert "it was rolled back; allowed: 1, flatten" in rollout("hand-over", "fib_rsi", "3", "2", *WHY, "--yes").err


def test_a_version_that_does_not_exist_has_not_drained(drained: Engine, rollout: Rollout) -> None:
    for given in (("drain", "fib_rsi", "9"), ("positions", "fib_rsi", "--version", "9")):
        refused = rollout(*given)

        assert refused.code == 4
        assert "no version '9' of 'fib_rsi'; known versions: 1, 2, 3" in refused.err


@pytest.mark.parametrize(
    ("chosen", "headline", "trades"),
    [
        (("--user", "u-t1"), "1 open position of fib_rsi of user u-t1: 1 by 2\n", ["t1"]),
        (("--version", "1"), "1 open position of fib_rsi 1: 1 by 1\n", ["t0"]),
        (("--version", "2", "--user", "u-t0"), "no open position of fib_rsi 2 of user u-t0\n", []),
        (("--user", "nobody"), "no open position of fib_rsi of user nobody\n", []),
    ],
)
def test_the_headline_counts_the_rows(
    chosen: tuple[str, ...], headline: str, trades: list[str], drained: Engine, rollout: Rollout
) -> None:
    shown = rollout("positions", "fib_rsi", *chosen)

    assert shown.out.startswith(headline)
    assert "draining" not in shown.out
    assert "not shown" not in shown.out
    assert [row["trade_id"] for row in rollout("positions", "fib_rsi", *chosen, "--json").data["positions"]] == trades
