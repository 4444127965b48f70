"""Positions and capital in a real browser, on a phone and on a wide screen: in the canary, and after its rollback."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from strategy_core.domain.audit import Command
from strategy_core.services.live_trades import ingest
from strategy_core.services.rollback import roll_back
from strategy_core.services.users import load_users
from tests.builders import OWNER
from tests.console.conftest import Site

pytestmark = [pytest.mark.full, pytest.mark.xdist_group("web console")]
OpenTab = Callable[..., Any]
NAME = "gold_trend"
WIDTHS = (390, 1280)


def texts(page: Any, address: str) -> str:
    """Return the text of a page, and check that it does not scroll sideways."""
    page.goto(address)
    assert not page.evaluate("document.documentElement.scrollWidth > innerWidth")
    return " ".join(page.locator("main").inner_text().split())


def test_an_owner_sees_the_capital_in_a_canary_and_then_its_positions_drain(site: Site, open_tab: OpenTab) -> None:
    now = datetime.now(UTC)
    load_users(site.engine, [(f"u{number}", 100.0) for number in range(200)], now=now)
    trades = [
        {"trade_id": f"t{number}", "user_id": f"u{number}", "strategy_name": NAME, "version": "2.0.0"}
        | {"symbol": "GOLD", "opened_at": now - timedelta(hours=1)}
        for number in range(37)
    ]
    ingest(site.engine, trades, now=now)
    rollout = f"{site.console}/strategies/{NAME}/rollouts/{site.rollouts[NAME]}"
    tabs = [open_tab(site.link(), viewport={"width": width, "height": 800}) for width in WIDTHS]
    for tab in tabs:
        tab.wait_for_url(site.console)

    before = [(texts(tab, site.console), texts(tab, rollout)) for tab in tabs]
    roll_back(site.engine, Command(OWNER, now, "slippage"), strategy_name=NAME)
    closed = [each | {"closed_at": now, "pnl": 1.0, "risk": 1.0} for each in trades[:12]]
    ingest(site.engine, closed, now=now)
    after = [
        (texts(tab, site.console), texts(tab, rollout), texts(tab, f"{site.console}/strategies/{NAME}#positions"))
        for tab in tabs
    ]

    for fleet, page in before:
        assert "% of capital" in fleet
        assert "of all capital" in page
        assert "draining" not in page
    for fleet, page, positions in after:
        assert "2.0.0 draining, 25 open positions" in fleet
        assert "25 positions of " in page
        assert "→ 25" in page
        assert "→ 25" in positions
