"""What an operator reads of a rollout, from its start to its rollback: every number, on both databases."""

from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, text

from strategy_core.domain.audit import Command
from strategy_core.domain.gates.base import Errors, Finding, InvalidDecisions, Verdict
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.plan import Plan
from strategy_core.domain.routing import bucket_of
from strategy_core.market.synthetic import SyntheticSource
from strategy_core.observe.metrics import NAMES, exposition
from strategy_core.services.alerts import acknowledge
from strategy_core.services.compare import compare_all
from strategy_core.services.drain import drain
from strategy_core.services.live_trades import ingest
from strategy_core.services.release_times import lift_freeze, set_freeze
from strategy_core.services.rollback import roll_back
from strategy_core.services.rollouts import pause, start_rollout
from strategy_core.services.tick import tick
from strategy_core.services.tokens import record_token, revoke_token
from strategy_core.services.users import load_users
from strategy_core.store import alerts, rollouts, versions
from strategy_core.store.engine import reading, transaction
from tests.builders import DAY, GOLD, HOUR, MONDAY, OWNER, decision_row, put_day, put_decisions, put_version
from tests.observe.scraping import scrape
from tests.services.outbox import outbox, put_alert

PLAN = Plan(gates=(Errors(), InvalidDecisions()))
NOW = MONDAY + DAY
OF = "strategy=fib_rsi version=2"


@pytest.fixture
def market() -> SyntheticSource:
    return SyntheticSource((GOLD,), start=MONDAY - 60 * DAY, days=90)


@pytest.fixture
def ramped(engine: Engine) -> Engine:
    """Version 2 at 5 % of a hundred users against version 1, a day ago; a day of candles, not ticked yet."""
    for version, status in (("1", Status.ACTIVE), ("2", Status.SHADOW)):
        put_version(engine, version, status)
    load_users(engine, [(f"u{number}", None) for number in range(100)], now=MONDAY)
    start_rollout(engine, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="2", plan=PLAN)
    put_day(engine, MONDAY, {"1": "buy", "2": "sell"}, {"1": 0.5, "2": -0.5}, signal_hours=[3, 4])
    return engine


def test_decisions_and_how_far_they_have_come(ramped: Engine) -> None:
    put_decisions(ramped, decision_row("2", NOW, "error", error_kind="breach"))

    found = scrape(ramped, now=NOW + 3 * HOUR)

    said = {
        decision: found[f"shadow_decisions_total decision={decision} strategy=fib_rsi symbol=GOLD version=2"]
        for decision in ("buy", "sell", "hold", "error")
    }
    assert said == {"buy": 0, "sell": 2, "hold": 22, "error": 1}
    assert found["shadow_errors_total kind=breach strategy=fib_rsi version=2"] == 1
    assert found["shadow_errors_total kind=deadline strategy=fib_rsi version=2"] == 0
    assert (found[f"isolation_breaches_total {OF}"], found["isolation_breaches_total strategy=fib_rsi version=1"]) == (
        1,
        0,
    )
    assert found[f"shadow_lag_seconds {OF}"] == 2 * 3600
    assert found["shadow_lag_seconds strategy=fib_rsi version=1"] == 3 * 3600
    assert found["feed_newest_candle_timestamp_seconds symbol=GOLD"] == NOW.timestamp()
    assert found["feed_lag_seconds symbol=GOLD"] == 2 * 3600


def test_a_symbol_that_was_never_decided_lags_since_the_registration(engine: Engine) -> None:
    put_version(engine, "1", symbols=("GOLD", "SILVER"), at=MONDAY)
    put_decisions(engine, decision_row("1", MONDAY + 5 * HOUR))

    assert scrape(engine, now=MONDAY + 6 * HOUR)["shadow_lag_seconds strategy=fib_rsi version=1"] == 6 * 3600


def test_where_a_rollout_stands_and_what_its_gates_say(ramped: Engine, market: SyntheticSource) -> None:
    before = scrape(ramped, now=NOW)
    tick(ramped, market, now=NOW)

    found = scrape(ramped, now=NOW + HOUR)

    in_canary = sum(bucket_of(f"u{number}") < 1000 for number in range(100))
    assert found[f"canary_users {OF}"] == in_canary > 0
    assert found["directory_users strategy=fib_rsi"] == 100
    assert found[f"canary_traffic_percent {OF}"] == 10
    assert found["rollout_open stage=2 state=running strategy=fib_rsi version=2"] == 1
    assert (found[f"rollout_stage {OF}"], found[f"rollout_stages {OF}"]) == (2, 5)
    assert (before[f"rollout_dwell_seconds {OF}"], found[f"rollout_dwell_seconds {OF}"]) == (86_400, 3600)
    assert found[f"rollout_blind_seconds {OF}"] == 0
    assert f"rollout_last_tick_timestamp_seconds {OF}" not in before
    assert found[f"rollout_last_tick_timestamp_seconds {OF}"] == NOW.timestamp()
    assert (before[f"rollout_tick_age_seconds {OF}"], found[f"rollout_tick_age_seconds {OF}"]) == (86_400, 3600)
    assert found["gate_verdict gate=errors strategy=fib_rsi verdict=pass version=2"] == 1
    assert (found[f"gate_value gate=errors {OF}"], found[f"gate_limit gate=errors {OF}"]) == (0, 0.05)
    assert found["gate_verdicts_total gate=errors strategy=fib_rsi verdict=pass"] == 1
    assert found["gate_verdicts_total gate=errors strategy=fib_rsi verdict=breach"] == 0
    assert found["rollbacks_total cause=errors strategy=fib_rsi"] == 0


def test_a_freeze_is_seen_while_it_lasts_and_one_of_all_strategies_by_each(engine: Engine) -> None:
    for name in ("fib_rsi", "ppo_gold"):
        put_version(engine, "1", Status.ACTIVE, strategy_name=name)
    command = Command(OWNER, MONDAY, "holidays")
    set_freeze(engine, command, strategy_name="fib_rsi", starts_at=MONDAY + HOUR, ends_at=MONDAY + 3 * HOUR)
    of_all = set_freeze(engine, command, strategy_name="*", starts_at=MONDAY + 2 * HOUR, ends_at=MONDAY + 9 * HOUR)

    def frozen(hours: int) -> list[float]:
        found = scrape(engine, now=MONDAY + hours * HOUR)
        return [found[f"releases_frozen strategy={name}"] for name in ("fib_rsi", "ppo_gold")]

    assert [frozen(hours) for hours in (0, 1, 2, 8, 9)] == [[0, 0], [1, 0], [1, 1], [1, 1], [0, 0]]
    lift_freeze(engine, Command(OWNER, MONDAY + 4 * HOUR, "over"), of_all.id or 0)
    assert frozen(8) == [0, 0]


def test_how_many_slots_and_days_a_rollout_should_still_take(engine: Engine) -> None:
    for version, status in (("1", Status.ACTIVE), ("2", Status.SHADOW)):
        put_version(engine, version, status)
    for day in range(10):
        worth = {"1": 0.5 - day % 2, "2": 0.52 - day % 2}
        put_day(engine, MONDAY + day * DAY, dict.fromkeys(worth, "buy"), worth, signal_hours=range(0, 20, 4))
    start = MONDAY + 11 * DAY
    start_rollout(engine, Command(OWNER, start), strategy_name="fib_rsi", version="2", plan=Plan())

    found = scrape(engine, now=start)

    assert (found[f"rollout_slots {OF}"], found[f"rollout_slots_needed {OF}"]) == (0, 30)
    stage, end = (found[f"rollout_days_left strategy=fib_rsi until={until} version=2"] for until in ("stage", "end"))
    assert 30 / 5 <= stage < 8
    assert end > stage + Plan().bake / DAY


def test_a_service_token_is_told_until_it_is_revoked_and_to_who_reaches_its_strategies(engine: Engine) -> None:
    put_version(engine, "1", Status.ACTIVE)
    for token_id, limited_to in (("t-1", ()), ("t-2", ("fib_rsi",)), ("t-3", ())):
        record_token(
            engine,
            Command(OWNER, MONDAY),
            token_id=token_id,
            name="router",
            role="owner",
            strategies=limited_to,
            read_only=True,
            issued_at=MONDAY,
            expires_at=NOW,
        )
    revoke_token(engine, Command(OWNER, MONDAY, "gone"), "t-3", at=MONDAY)

    everything, of_one, of_none = (
        {name: value for name, value in scrape(engine, now=NOW + DAY, strategies=reached).items() if "token" in name}
        for reached in (None, ["fib_rsi"], [])
    )

    expires = "service_token_expires_timestamp_seconds"
    assert everything == {f"{expires} id={token_id} name=router": NOW.timestamp() for token_id in ("t-1", "t-2")}
    assert of_one == {f"{expires} id=t-2 name=router": NOW.timestamp()}
    assert of_none == {}


def test_the_verdict_that_stands_is_the_newest(ramped: Engine, market: SyntheticSource) -> None:
    tick(ramped, market, now=NOW)
    put_decisions(ramped, *(decision_row("1", NOW + hour * HOUR) for hour in range(2)))
    tick(ramped, market, now=NOW + 6 * HOUR)

    found = scrape(ramped, now=NOW + 7 * HOUR)

    assert [name for name in found if name.startswith("gate_verdict gate=freshness")] == [
        "gate_verdict gate=freshness strategy=fib_rsi verdict=blind version=2"
    ]
    assert found[f"rollout_blind_seconds {OF}"] == 3600


def test_a_rollback_is_counted_by_its_cause_and_ends_what_is_told_of_the_rollout(
    ramped: Engine, market: SyntheticSource
) -> None:
    put_decisions(ramped, *(decision_row("2", NOW + hour * HOUR, "error", error_kind="raised") for hour in range(3)))
    tick(ramped, market, now=NOW + 4 * HOUR)

    found = scrape(ramped, now=NOW + 5 * HOUR)

    causes = {name: value for name, value in found.items() if name.startswith("rollbacks_total")}
    assert {name for name, value in causes.items() if value} == {"rollbacks_total cause=errors strategy=fib_rsi"}
    assert "rollbacks_total cause=owner strategy=fib_rsi" in causes
    assert found[f"canary_traffic_percent {OF}"] == 0
    assert found[f"canary_users {OF}"] == 0
    assert found["alerts_raised_total kind=rollout.rolled_back severity=critical"] == 1
    gone = (
        "rollout_open",
        "rollout_stage",
        "rollout_dwell",
        "rollout_tick",
        "gate_verdict ",
        "gate_value",
        "gate_limit",
    )
    assert [name for name in found if name.startswith(gone)] == []
    assert [name for name in found if name.startswith("gate_verdicts_total")]


def test_alerts_and_what_waits_on_each_channel(engine: Engine) -> None:
    for number, severity in enumerate(("warning", "critical", "critical")):
        put_alert(engine, f"alert {number}", severity)
    put_alert(engine, "of an earlier release", kind="rollout.paused")
    with transaction(engine) as session:
        alerts.enlist(session, "json-1", outbox(engine)[:3], now=MONDAY)
        alerts.enlist(session, "json-2", outbox(engine)[:1], now=MONDAY + HOUR)
        alerts.acknowledge(session, outbox(engine)[2].id or 0, by="ana", because="seen", now=MONDAY)
    with transaction(engine) as session:
        (claimed,) = [alerts.claim(session, "json-2", now=MONDAY + HOUR, lease=HOUR, longest=HOUR, claimant="x")]
        assert claimed is not None
        alerts.mark(session, claimed[1], {"next_try_at": None})

    found = scrape(engine, now=MONDAY + 2 * HOUR)

    assert found["alerts_raised_total kind=rollout.blind severity=critical"] == 2
    assert found["alerts_raised_total kind=other severity=warning"] == 1
    assert found["alerts_raised_total kind=feed.stale severity=warning"] == 0
    assert (found["alerts_unacknowledged severity=critical"], found["alerts_unacknowledged severity=info"]) == (1, 0)
    assert (found["alert_outbox_depth channel=json-1"], found["alert_outbox_oldest_seconds channel=json-1"]) == (
        2,
        7200,
    )
    assert (found["alert_outbox_depth channel=json-2"], found["alert_outbox_oldest_seconds channel=json-2"]) == (0, 0)


def test_the_newest_report_and_the_shadows_fidelity(ramped: Engine, market: SyntheticSource) -> None:
    at = {"user_id": "u7", "strategy_name": "fib_rsi", "version": "1", "symbol": GOLD}
    trades = [
        {**at, "trade_id": str(hour), "opened_at": MONDAY + hour * HOUR, "closed_at": NOW, "pnl": 5.0, "risk": 10.0}
        for hour in (4, 5)
    ]
    ingest(ramped, trades, now=NOW)
    tick(ramped, market, now=NOW)
    compare_all(ramped, market, now=NOW - 12 * HOUR, days=1)
    compare_all(ramped, market, now=NOW + HOUR, days=5)

    found = scrape(ramped, now=NOW + HOUR)

    assert found[f"comparison_divergence_percent {OF}"] == 100
    assert found[f"comparison_difference_r bound=mean {OF}"] == -1
    assert f"comparison_difference_r bound=low {OF}" not in found  # two days at least tell of the spread
    assert found["fidelity_concordance strategy=fib_rsi version=1"] == 1
    assert not any(name.startswith("comparison") and "version=1" in name for name in found)


def test_every_name_is_exported_with_or_without_samples(engine: Engine) -> None:
    page = exposition(engine, now=MONDAY)[0].decode()

    assert {line.split()[2] for line in page.splitlines() if line.startswith("# TYPE")} == NAMES


def test_a_token_of_one_strategy_sees_that_alone(ramped: Engine, market: SyntheticSource) -> None:
    put_version(ramped, "9", strategy_name="ppo_gold", symbols=("SILVER",))
    tick(ramped, market, now=NOW)

    mine = exposition(ramped, ["ppo_gold"], now=NOW)[0].decode()

    assert 'strategy="ppo_gold"' in mine
    assert "fib_rsi" not in mine
    assert "GOLD" not in mine.replace("ppo_gold", "")
    assert exposition(ramped, [], now=NOW)[0].decode().count('strategy="') == 0


def test_ages_are_never_below_zero_where_a_replay_begins_anew(ramped: Engine, market: SyntheticSource) -> None:
    tick(ramped, market, now=NOW)

    found = scrape(ramped, now=MONDAY - DAY)

    assert [name for name, value in found.items() if "_seconds" in name and value < 0] == []


def test_a_plan_that_cannot_be_read_takes_nobody_elses_numbers(ramped: Engine, market: SyntheticSource) -> None:
    tick(ramped, market, now=NOW)
    put_version(ramped, "1", Status.ACTIVE, strategy_name="other")
    put_version(ramped, "2", strategy_name="other")
    start_rollout(ramped, Command(OWNER, NOW), strategy_name="other", version="2", plan=PLAN)
    with ramped.begin() as connection:
        on = " ON rollout" if ramped.dialect.name == "postgresql" else ""
        connection.execute(text(f"DROP TRIGGER refuse_update_rollout{on}"))
        connection.execute(text("""UPDATE rollout SET plan = '{"stages": 7}' WHERE strategy_name = 'other'"""))

    found = scrape(ramped, now=NOW)

    assert found["exporter_left_out reason=unreadable"] == 1
    assert f"rollout_stages {OF}" in found
    assert "rollout_stage strategy=other version=2" in found
    assert "rollout_stages strategy=other version=2" not in found


def test_a_retired_version_is_told_of_for_a_week(engine: Engine) -> None:
    put_version(engine, "1")
    put_decisions(engine, decision_row("1", MONDAY))
    with transaction(engine) as session:
        versions.move(session, versions.get_version(session, "fib_rsi", "1"), Status.RETIRED, MONDAY)

    soon, later = scrape(engine, now=MONDAY + 6 * DAY), scrape(engine, now=MONDAY + 8 * DAY)

    assert "shadow_decisions_total decision=hold strategy=fib_rsi symbol=GOLD version=1" in soon
    assert "shadow_lag_seconds strategy=fib_rsi version=1" not in soon  # nobody asks it any more
    assert [name for name in later if "version=1" in name] == []


def test_open_positions_are_counted_by_their_manager(engine: Engine, market: SyntheticSource) -> None:
    put_version(engine, "1", Status.ACTIVE)
    put_version(engine, "2")
    put_decisions(engine, decision_row("2", MONDAY + HOUR, intent="close"))
    trade = {"user_id": "u1", "strategy_name": "fib_rsi", "symbol": "GOLD", "opened_at": MONDAY}
    trades = [{**trade, "trade_id": f"t{number}", "version": version} for number, version in enumerate("122")]
    ingest(engine, trades, now=MONDAY + DAY)
    drain(engine, market, now=MONDAY + DAY)

    found = scrape(engine, now=MONDAY + DAY)

    assert {name: value for name, value in found.items() if "positions" in name and "kind" not in name} == {
        "open_positions strategy=fib_rsi version=1": 1,
        "open_positions strategy=fib_rsi version=2": 2,
        "draining_positions strategy=fib_rsi version=2": 2,
    }
    assert found["unclosed_exits strategy=fib_rsi"] == 2


def test_what_is_beyond_the_cap_is_counted(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("strategy_core.observe.metrics.MOST_PAIRS", 2)
    symbols = [f"S{number}" for number in range(5)]
    put_version(engine, "1", symbols=symbols)
    put_decisions(engine, *(decision_row("1", MONDAY, symbol=symbol) for symbol in symbols))

    found = scrape(engine, now=MONDAY + HOUR)

    assert len({name for name in found if name.startswith("shadow_decisions_total decision=hold")}) == 2
    assert found["exporter_left_out reason=cap"] > 0


def test_a_count_that_is_left_out_is_not_told_to_be_nothing(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A counter that falls to 0 looks as if it had begun anew."""
    monkeypatch.setattr("strategy_core.observe.metrics.MOST_TALLIES", 0)
    put_version(engine, "1")
    put_decisions(engine, decision_row("1", MONDAY, "error", error_kind="breach"))

    found = scrape(engine, now=MONDAY + HOUR)

    assert [name for name in found if name.startswith(("isolation_breaches_total", "shadow_errors_total"))] == []
    assert found["exporter_left_out reason=cap"] > 0


def test_a_name_that_tries_to_be_another_series_stays_a_name(engine: Engine) -> None:
    hostile = 'x"} 1\nalerts_unacknowledged{severity="critical"} 99 #\\'
    put_version(engine, "1", strategy_name=hostile)

    found: Any = exposition(engine, now=MONDAY + timedelta(hours=1))[0].decode()

    assert found.count("\nalerts_unacknowledged{") == 3
    assert scrape(engine, now=MONDAY)["alerts_unacknowledged severity=critical"] == 0
    assert scrape(engine, now=MONDAY)[f"strategy_generation strategy={hostile}"] == 0


def test_an_owners_rollback_is_his(ramped: Engine) -> None:
    roll_back(ramped, Command(OWNER, NOW, "no"), strategy_name="fib_rsi")

    assert scrape(ramped, now=NOW)["rollbacks_total cause=owner strategy=fib_rsi"] == 1
    with reading(ramped) as session:
        assert versions.with_status(session, "fib_rsi", Status.CANARY) is None


def test_how_long_something_lasts_is_exported_and_needs_no_memory(ramped: Engine) -> None:
    """A rule that waits with `for` begins again after each gap between scrapes."""
    put_alert(ramped, "users lose money", "critical", at=NOW)
    put_alert(ramped, "they still do", "critical", at=NOW + HOUR)
    for hour, verdict in enumerate(("inconclusive", "pass", "inconclusive", "inconclusive")):
        put_verdict(ramped, "errors", verdict, NOW + hour * HOUR)

    found = scrape(ramped, now=NOW + 4 * HOUR)

    assert {name: value for name, value in found.items() if name.startswith("gate_verdict_seconds")} == {
        "gate_verdict_seconds gate=errors strategy=fib_rsi verdict=inconclusive version=2": 2 * 3600
    }
    assert found["alerts_unacknowledged_seconds"] == 4 * 3600
    assert found[f"rollout_unchanged_seconds {OF}"] == 28 * 3600

    pause(ramped, Command(OWNER, NOW + 4 * HOUR), strategy_name="fib_rsi")
    acknowledge(ramped, Command(OWNER, NOW + 4 * HOUR, "seen"), [each.id or 0 for each in outbox(ramped)])
    put_verdict(ramped, "errors", "fail", NOW + 4 * HOUR)
    later = scrape(ramped, now=NOW + 5 * HOUR)

    assert later["gate_verdict_seconds gate=errors strategy=fib_rsi verdict=fail version=2"] == 3600
    assert (later["alerts_unacknowledged_seconds"], later[f"rollout_unchanged_seconds {OF}"]) == (0, 3600)


def put_verdict(engine: Engine, gate: str, verdict: str, at: datetime) -> None:
    with transaction(engine) as session:
        rollout = rollouts.open_rollout(session, "fib_rsi")
        assert rollout is not None
        finding = Finding(gate=gate, verdict=Verdict(verdict), reason=f"{verdict} at {at}")
        rollouts.record_findings(session, rollout, [finding], at)
