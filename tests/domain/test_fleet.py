"""What needs an owner in a fleet."""

from strategy_core.domain.alerts import AWAITING_APPROVAL, CLOSED, ROLLED_BACK, STALE, Severity
from strategy_core.domain.fleet import Need, OpenAlerts, Urgency, needs_of
from strategy_core.domain.rollout_verdict import VerdictKind


def needs(
    verdict: VerdictKind | None = None, *alerts: OpenAlerts, overdue: str = "", behind: int = 0, served: bool = True
) -> list[str]:
    found = needs_of(verdict=verdict, tick_overdue=overdue, candles_behind=behind, is_served=served, alerts=alerts)
    return [need.line for need in found]


def test_a_calm_strategy_needs_no_owner() -> None:
    assert needs(VerdictKind.SAFE) == []
    assert needs(None, OpenAlerts(CLOSED, Severity.INFO, 3)) == []


def test_needs_are_sorted_from_urgent_to_calm() -> None:
    critical, warning = OpenAlerts(CLOSED, Severity.CRITICAL, 1), OpenAlerts(STALE, Severity.WARNING, 2)

    found = needs(VerdictKind.AWAITING_DECISION, critical, warning, overdue="60 min", behind=3, served=False)

    assert found == [
        "its gates have not run for 60 min",
        "closed: no version serves its users",
        "waits for your decision",
        "no decisions for 3 candles",
        "no version serves its users",
        "2 warnings are open",
    ]


def test_an_alert_about_the_rollouts_own_state_is_no_second_need() -> None:
    asked = OpenAlerts(AWAITING_APPROVAL, Severity.CRITICAL, 1)

    found = needs(VerdictKind.AWAITING_APPROVAL, asked, OpenAlerts(AWAITING_APPROVAL, Severity.WARNING, 1), behind=1)

    assert found == ["waits for your approval", "no decisions for a candle"]


def test_a_rollback_waits_for_its_acknowledgement_and_other_critical_alerts_for_an_act() -> None:
    alerts = [OpenAlerts(ROLLED_BACK, Severity.CRITICAL, 1), OpenAlerts("new.kind", Severity.CRITICAL, 1)]

    found = needs_of(verdict=None, tick_overdue="", candles_behind=0, is_served=True, alerts=alerts)

    assert found == (Need(Urgency.NOW, "new.kind", "new.kind"), Need(Urgency.ASKED, "rolled back", ROLLED_BACK))


def test_a_canary_without_gates_needs_a_look() -> None:
    found = needs_of(verdict=None, tick_overdue="", candles_behind=0, is_served=True, is_judged=False, alerts=())

    assert found == (Need(Urgency.LOOK, "no gate judges its canary"),)


def test_one_warning_is_one() -> None:
    assert needs(None, OpenAlerts(STALE, Severity.WARNING, 1)) == ["a warning is open"]
