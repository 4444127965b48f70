"""Live trades as the platform reports them: taken in once, whole batches, held against what routing gave."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine
from sqlmodel import select

from strategy_core.domain.audit import Command
from strategy_core.domain.errors import Contradicted, InvalidReport, UnknownStrategy, UnknownVersion
from strategy_core.domain.live_trades import Serving, serving_at
from strategy_core.domain.plan import Plan
from strategy_core.services.canary import activate_canary, update_canary_percent
from strategy_core.services.live_trades import Ingested, ingest, ingest_csv, read_trades_csv
from strategy_core.services.rollback import roll_back
from strategy_core.services.rollouts import start_rollout
from strategy_core.services.versions import activate_version
from strategy_core.store import audit, live_trades
from strategy_core.store.engine import reading
from strategy_core.store.tables import LiveTrade
from tests.builders import DAY, HOUR, MONDAY, OWNER, put_pair
from tests.prepared import prepared

NOON = MONDAY + 12 * HOUR
IN_CANARY, IN_ACTIVE = "u13", "u2"  # buckets 4.68 % and 88.11 %


def report(trade_id: str = "t1", **fields: Any) -> dict[str, Any]:
    return {
        "trade_id": trade_id,
        "user_id": IN_ACTIVE,
        "strategy_name": "fib_rsi",
        "version": "1",
        "symbol": "GOLD",
        "opened_at": NOON,
    } | fields


def closed(trade_id: str = "t1", **fields: Any) -> dict[str, Any]:
    return report(trade_id, **{"closed_at": NOON + HOUR, "pnl": 5.0, "risk": 10.0} | fields)


def stored(engine: Engine) -> list[LiveTrade]:
    with reading(engine) as session:
        return list(session.exec(select(LiveTrade).order_by("id")).all())


@pytest.fixture
def pair(engine: Engine) -> Engine:
    prepared(engine, put_pair)
    return engine


@pytest.fixture
def ramped(pair: Engine) -> Engine:
    """Version 2 serves 5 % of users since Monday."""
    start_rollout(pair, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="2", plan=Plan())
    return pair


def test_a_report_is_taken_in_once(pair: Engine) -> None:
    batch = [report("t1"), closed("t1"), report("t2", error="rejected"), report("t1")]

    assert ingest(pair, batch, now=NOON + DAY) == Ingested(new=3, known=1, misrouted=0)
    assert ingest(pair, batch, now=NOON + 2 * DAY) == Ingested(new=0, known=4, misrouted=0)
    assert [(row.trade_id, row.state) for row in stored(pair)] == [("t1", "open"), ("t1", "closed"), ("t2", "failed")]


@pytest.mark.parametrize(
    ("second", "field"),
    [
        (closed(pnl=6.0), "pnl"),
        (closed(user_id="u3"), "user_id"),
        (report(opened_at=NOON - HOUR), "opened_at"),
        (report(version="2"), "version"),
        (report(error="rejected"), "state"),
    ],
)
def test_a_trade_reported_otherwise_is_refused_with_its_whole_batch(
    pair: Engine, second: dict[str, Any], field: str
) -> None:
    ingest(pair, [closed()], now=NOON + DAY)

    with pytest.raises(Contradicted, match=f"trade 't1' was reported with {field} ") as refused:
        ingest(pair, [report("t9"), second], now=NOON + DAY)

    assert (refused.value.trade_id, refused.value.field) == ("t1", field)
    assert [row.trade_id for row in stored(pair)] == ["t1"]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (report(pnl=float("nan")), "pnl: Input should be a finite number"),
        (closed(risk=0), "risk: Input should be greater than 0"),
        (closed(risk=None), "risk: a closed trade needs it"),
        (closed(pnl=1e300), "pnl: Input should be less than or equal to"),
        (closed(risk=1e-300), "pnl, risk: R = pnl / risk must not exceed"),
        (closed(pnl=1e-300, risk=1e300), "pnl, risk: R = pnl / risk is too small for a number; report a pnl of 0"),
        (report(error="no\x00margin"), "error: String should match pattern"),
        (closed(closed_at=NOON - HOUR), "closed_at: is before opened_at"),
        (closed(closed_at=NOON + 9 * DAY), "opened_at, closed_at: later than now, 2026-03-03 12:00:00 UTC"),
        (report(closed_at=NOON), "closed_at, pnl: a closed trade has both, an open one neither"),
        (closed(error="rejected"), "error: a failed order has neither closed_at nor pnl"),
        (report(opened_at="2026-03-02T12:00"), "opened_at: 2026-03-02T12:00 has no time zone"),
        (report(opened_at="1772452800"), "opened_at: '1772452800' is not a time; needed is ISO 8601"),
        (report(opened_at="0001-01-01T00:00+14:00"), "opened_at: .* is out of range"),
        (report(latency_ms=-1), "latency_ms: Input should be greater than or equal to 0"),
        (report(user_id=""), "user_id: String should have at least 1 character"),
        (report(user_id="a\x00b"), "user_id: String should match pattern"),
        (report(profit=1), "profit: no such field; needed are trade_id, user_id"),
        (report(latency=1), r"latency: no such field; did you mean latency_ms\?"),
        (report(symbol="XAUUSD"), "symbol: 'XAUUSD' is none of the version's; it has GOLD"),
    ],
)
def test_a_row_that_cannot_be_is_named_with_its_field(pair: Engine, row: dict[str, Any], problem: str) -> None:
    with pytest.raises(InvalidReport, match=f"trades, row 2: {problem}"):
        ingest(pair, [report("t9"), row], now=NOON + DAY)

    assert stored(pair) == []


def test_trades_of_what_was_never_registered_are_refused(pair: Engine) -> None:
    with pytest.raises(UnknownVersion):
        ingest(pair, [report(version="9")], now=NOON)
    with pytest.raises(UnknownStrategy):
        ingest(pair, [report(strategy_name="ppo")], now=NOON)


def test_each_trade_is_held_against_the_routing_of_its_time(ramped: Engine) -> None:
    batch = [
        report("right 1"),
        report("right 2", user_id=IN_CANARY, version="2"),
        report("wrong 1", user_id=IN_CANARY),
        report("wrong 2", version="2"),
        report("before", user_id=IN_CANARY, version="2", opened_at=MONDAY - DAY),
    ]

    assert ingest(ramped, batch, now=NOON).misrouted == 2
    assert [row.trade_id for row in stored(ramped) if row.misrouted] == ["wrong 1", "wrong 2"]
    assert {row.trade_id for row in stored(ramped) if row.canary_bp == 0} == {"before"}
    assert {row.canary_bp for row in stored(ramped)} == {0, 500}


@pytest.mark.parametrize(("after_s", "misrouted"), [(-6, 1), (-4, 0), (0, 0), (60, 0), (61, 0), (3_600, 0)])
def test_a_change_has_a_minute_to_reach_a_router_but_is_not_foreseen(
    ramped: Engine, after_s: int, misrouted: int
) -> None:
    """The new version is right from the change on, but for a broker's clock that is late."""
    roll_back(ramped, Command(OWNER, NOON, "harm"), strategy_name="fib_rsi")
    batch = [report(user_id=IN_CANARY, opened_at=NOON + timedelta(seconds=after_s))]

    assert ingest(ramped, batch, now=NOON + DAY).misrouted == misrouted


@pytest.mark.parametrize(("after_s", "misrouted"), [(-6, 0), (59, 0), (61, 1)])
def test_the_old_version_is_right_for_a_minute_after_a_change(ramped: Engine, after_s: int, misrouted: int) -> None:
    roll_back(ramped, Command(OWNER, NOON, "harm"), strategy_name="fib_rsi")
    batch = [report(user_id=IN_CANARY, version="2", opened_at=NOON + timedelta(seconds=after_s))]

    assert ingest(ramped, batch, now=NOON + DAY).misrouted == misrouted


def test_the_trail_tells_who_served_at_any_moment(pair: Engine) -> None:
    activate_canary(pair, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="2", rollout_percent=12.5)
    update_canary_percent(
        pair, Command(OWNER, MONDAY - HOUR), strategy_name="fib_rsi", percent=20
    )  # a clock that ran back
    activate_version(pair, Command(OWNER, MONDAY + DAY), strategy_name="fib_rsi", version="2")

    with reading(pair) as session:
        history = audit.serving_history(session, "fib_rsi")
    assert serving_at(history, MONDAY - timedelta(seconds=1)) is None
    assert serving_at(history, MONDAY) == Serving(MONDAY, "1", "2", 2000)
    assert serving_at(history, MONDAY + 9 * DAY) == Serving(MONDAY + DAY, "2", None, 0)


@pytest.mark.full
def test_many_reports_are_read_back_whole(pair: Engine) -> None:
    """More trades than one statement takes as parameters."""
    batch = [report(f"t{number}") for number in range(5_100)]

    assert ingest(pair, batch, now=NOON).new == 5_100
    with reading(pair) as session:
        assert len(list(live_trades.reported(session, (row["trade_id"] for row in batch)))) == 5_100


def test_the_same_batch_twice_at_once_is_taken_in_once(pair: Engine) -> None:
    batch = [report(f"t{number}") for number in range(200)]

    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda _: ingest(pair, batch, now=NOON), range(4)))

    assert (sum(one.new for one in done), sum(one.known for one in done)) == (200, 600)


def put_csv(folder: Path, *lines: str) -> Path:
    file = folder / "trades.csv"
    file.write_text("\n".join(lines) + "\n")
    return file


HEADER = "trade_id,user_id,strategy_name,version,symbol,opened_at"


def test_a_file_is_taken_in(pair: Engine, tmp_path: Path) -> None:
    file = put_csv(
        tmp_path,
        HEADER + ",closed_at,pnl,risk,error,latency_ms",
        "t1,u1,fib_rsi,1,GOLD,2026-03-02T12:00:05Z,,,,,35.5",
        "t1,u1,fib_rsi,1,GOLD,2026-03-02T13:00:05+01:00,2026-03-02T15:00:00Z,-4.5,10,,",
        "t2,u2,fib_rsi,1,GOLD,2026-03-02T12:00:06Z,,,,no margin,",
    )

    assert ingest_csv(pair, file, now=NOON + DAY).new == 3
    assert [(row.state, row.pnl, row.latency_ms, row.candle_s) for row in stored(pair)] == [
        ("open", None, 35.5, NOON.timestamp()),
        ("closed", -4.5, None, NOON.timestamp()),
        ("failed", None, None, NOON.timestamp()),
    ]


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ([], "row 1: no column trade_id, user_id, strategy_name, version, symbol, opened_at; needed are"),
        ([HEADER.replace("user_id", "user")], r"row 1: column 'user': no such field; did you mean user_id\?"),
        ([HEADER.replace(",version", "")], "row 1: no column version; needed are trade_id, user_id"),
        ([HEADER + ",symbol"], "row 1: column 'symbol' occurs twice"),
        ([HEADER, "t1,u1"], "row 2: has 2 fields, the header 6"),
        ([HEADER, 't1,"u1'], "is not CSV: unexpected end of data"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_in_a_line(tmp_path: Path, lines: list[str], problem: str) -> None:
    with pytest.raises(InvalidReport, match=problem):
        read_trades_csv(put_csv(tmp_path, *lines))


def test_a_files_rows_are_numbered_below_its_header(pair: Engine, tmp_path: Path) -> None:
    file = put_csv(tmp_path, HEADER, "t1,u1,fib_rsi,1,GOLD,yesterday")

    with pytest.raises(InvalidReport, match=r"trades\.csv, row 2: opened_at: 'yesterday' is not a time"):
        ingest_csv(pair, file, now=NOON)


def test_a_file_that_is_not_there_or_is_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidReport, match="cannot be read: No such file"):
        read_trades_csv(tmp_path / "none.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidReport, match="is not UTF-8 text"):
        read_trades_csv(tmp_path / "binary.csv")
