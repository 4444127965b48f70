"""Import live trades and users, and the plan that counts those users."""

import io
from pathlib import Path

import pytest
from sqlalchemy import Engine

from strategy_core.domain.lifecycle import Status
from tests.builders import DAY, HOUR, MONDAY, put_day, put_pair, put_version
from tests.cli.conftest import Rollout, set_clock
from tests.prepared import prepared

HEADER = "trade_id,user_id,strategy_name,version,symbol,opened_at\n"
TRADE = "t1,u2,fib_rsi,1,GOLD,2026-03-01T12:00Z\n"


@pytest.fixture
def pair(database: Engine) -> Engine:
    prepared(database, put_pair)
    return database


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "platform.csv"


def test_trades_are_taken_in_once(rollout: Rollout, pair: Engine, file: Path) -> None:
    file.write_text(HEADER + TRADE)

    assert rollout("outcomes", str(file)).out == "1 reports imported, 0 already known\n"
    assert rollout("outcomes", str(file), "--json").data == {"new": 0, "known": 1, "misrouted": 0}


def test_trades_come_by_standard_input_too(rollout: Rollout, pair: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(HEADER + TRADE))

    assert rollout("outcomes", "-", "--json").data["new"] == 1


def test_users_on_a_wrong_version_are_told_of_at_once(
    rollout: Rollout, pair: Engine, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rollout("start", "fib_rsi", "2", "--yes")
    set_clock(monkeypatch, MONDAY + HOUR)
    file.write_text(HEADER + TRADE.replace(",1,GOLD,2026-03-01T12:00Z", ",2,GOLD,2026-03-02T00:30Z"))

    assert rollout("outcomes", str(file)).out.endswith(", 1 from users on a wrong version\n")


@pytest.mark.parametrize(
    ("text", "code", "line"),
    [
        (HEADER + TRADE.replace("GOLD", "OIL"), 2, "row 2: symbol: 'OIL' is none of the version's; it has GOLD"),
        (HEADER + TRADE.replace("fib_rsi", "fib"), 4, "no strategy 'fib'; known strategies: fib_rsi"),
        (HEADER + TRADE + TRADE.replace("u2", "u3"), 5, "trade 't1' was reported with user_id u2, now with u3"),
        (HEADER.replace("symbol", "symbl"), 2, "row 1: column 'symbl': no such field; did you mean symbol?"),
    ],
)
def test_a_file_that_is_wrong_is_refused_in_a_line(
    rollout: Rollout, pair: Engine, file: Path, text: str, code: int, line: str
) -> None:
    file.write_text(text)

    said = rollout("outcomes", str(file))

    assert said.code == code
    assert line in said.err
    assert said.err.count("\n") == 1


def test_a_plan_says_that_its_shares_are_estimates(rollout: Rollout, pair: Engine) -> None:
    said = rollout("plan", "fib_rsi", "2")

    assert "Shares of users are an estimate: no user list is loaded" in said.out
    assert rollout("plan", "fib_rsi", "2", "--json").data["audience"]["estimated"] is True


def test_a_plan_counts_the_directory(rollout: Rollout, pair: Engine, file: Path) -> None:
    file.write_text("user_id,capital\n" + "".join(f"u{number},100\n" for number in range(400)) + "rich,\n")

    loaded = rollout("users", str(file))
    said = rollout("plan", "fib_rsi", "2")
    data = rollout("plan", "fib_rsi", "2", "--json").data

    assert loaded.out == "401 users: 401 added, 0 removed, 0 with changed capital\n"
    assert "Based on 401 users in the directory. The capital of 1 is unknown." in said.out
    first = data["audience"]["stages"][0]
    assert (first["users"], first["capital"]) == (17, 1700.0)
    assert first["capital_share"] == pytest.approx(17 / 401)  # the unknown capital counts as the mean
    assert "1,700" in said.out
    assert len(data["stages"]) == 5
    assert data["underpowered"] is True


@pytest.mark.parametrize(
    ("salt", "told"),
    [
        ("", "in the 5 % canary of ppo 2: 5.00% → 5.00% → 5.00% → 5.00% → 5.00% of users (same salt"),
        ("ppo", "in the 5 % canary of ppo 2: 0.25% → 0.50% → 1.25% → 2.50% → 5.00% of users (expected, salts differ"),
    ],
)
def test_a_plan_says_whom_other_canaries_share(
    rollout: Rollout, pair: Engine, file: Path, salt: str, told: str
) -> None:
    put_version(pair, "1", Status.ACTIVE, strategy_name="ppo", salt=salt)
    put_version(pair, "2", strategy_name="ppo")
    rollout("canary", "ppo", "2", "5", "--yes")

    assert told in rollout("plan", "fib_rsi", "2").out
    file.write_text("user_id\n" + "".join(f"u{number}\n" for number in range(400)))
    rollout("users", str(file))
    counted = "17 → 17 → 17 → 17 → 17 users" if salt == "" else "1 → 2 → 5 → 10 → 20 users"
    assert counted in rollout("plan", "fib_rsi", "2").out


def test_status_sets_users_results_beside_the_shadows(
    rollout: Rollout, pair: Engine, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rollout("start", "fib_rsi", "2", "--yes")
    put_day(pair, MONDAY, {"1": "buy", "2": "buy"}, {"1": 0.5, "2": 0.5}, signal_hours=[1, 5])
    set_clock(monkeypatch, MONDAY + DAY)
    head = HEADER.strip() + ",closed_at,pnl,risk\n"
    opened, closes = ["2026-03-02T02:00Z", "2026-03-02T06:00Z"], "2026-03-02T08:00Z"
    rows = [
        f"t{n},u2,fib_rsi,1,GOLD,{at},{closes},{pnl},10\n"
        for n, (at, pnl) in enumerate(zip(opened, [4, -2], strict=True))
    ]
    file.write_text(head + "".join(rows))
    rollout("outcomes", str(file))

    told = rollout("status", "fib_rsi", "--json").data[0]["rollout"]["live"]
    assert list(told) == ["1"]
    assert (told["1"]["trades"], told["1"]["live"]["win_rate"], told["1"]["shadow"]["win_rate"]) == (2, 0.5, 1.0)
    shown = rollout("status", "fib_rsi", "--all").out
    assert "users" in shown
    assert "fidelity" in shown
