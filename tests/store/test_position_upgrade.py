"""An upgrade opens positions for the trades that are open, but for those of retired versions."""

import pytest
from sqlalchemy import text
from sqlalchemy.engine import Engine

from strategy_core.domain.lifecycle import Status
from strategy_core.store import positions
from strategy_core.store.engine import open_database, reading, transaction, upgrade
from tests.builders import MONDAY, put_version

TRADE = (
    "INSERT INTO live_trade (trade_id, state, user_id, strategy_name, version, symbol, opened_at, candle_s, closed_at, "
    "pnl, risk, error, canary_bp, misrouted, ingested_at) VALUES "
    "(:trade, :state, 'u1', 'fib_rsi', :version, 'GOLD', :at, 1772409600, :closed, :pnl, 1, :error, 0, false, :at)"
)


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_trades_that_are_open_get_the_version_on_their_order_as_manager(
    database: str, request: pytest.FixtureRequest, tmp_path: object
) -> None:
    url = f"sqlite:///{tmp_path}/old.db"
    if database == "postgresql":
        url = request.getfixturevalue("bare_postgresql_url")
    engine = open_database(url)
    upgrade(engine, "v0014")
    put_version(engine, "1", Status.ACTIVE)
    put_version(engine, "2", Status.RETIRED)
    put_trades(engine)

    upgrade(engine)

    with reading(engine) as session:
        found = [(each.trade_id, each.opened_by, each.manager) for each in positions.find_positions(session, None)]
    engine.dispose()
    assert found == [("open", "1", "1")]


def put_trades(engine: Engine) -> None:
    rows = [("open", "open", "1"), ("left", "open", "1"), ("left", "closed", "1"), ("failed", "failed", "1")]
    with transaction(engine) as session:
        for trade, state, version in [*rows, ("orphan", "open", "2")]:
            ended = {"closed": MONDAY, "pnl": 1.0} if state == "closed" else {"closed": None, "pnl": None}
            error = "no money" if state == "failed" else ""
            facts = {"trade": trade, "state": state, "version": version, "at": MONDAY, "error": error, **ended}
            session.connection().execute(text(TRADE), facts)
