"""Alert messages: every kind, word for word, with the command that acts on it."""

import re
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategy_core.domain.alerts import HEADLINES, LONGEST, Exposed, Message, Raised, Severity, message
from strategy_core.domain.links import Links
from tests.builders import DAY, MONDAY

ROLLOUT = UUID("0a1b2c3d-0000-4000-8000-000000000001")
SERVICES = Path(__file__).parents[2] / "strategy_core" / "services"

CANARY = {"role": "canary", "percent": 5.0, "since": "2026-03-02T00:00:00+00:00"}
ACTIVE = {"role": "active", "percent": 100.0, "since": "2026-03-06T00:00:00+00:00"}
NOBODY = {"role": "shadow", "percent": 0.0, "since": None}
STAYS = {"exposed": CANARY, "exposed_before": CANARY}
PAIR = {"version": "2", "control_version": "1"}
PASSED = {"gate": "not_worse", "verdict": "pass", "value": 0.012, "limit": -0.1, "low": -0.02, "high": 0.044, "n": 120}
BROKEN = {"gate": "losing_streak", "verdict": "breach", "value": 40.0, "limit": 12.0, "low": None, "n": 40}
WATCHED = {"gate": "watch", "verdict": "inconclusive", "value": 1.2, "limit": 2.60206, "low": None, "n": 240}
UNSURE = PASSED | {"verdict": "inconclusive"}

RAISED: dict[str, tuple[str, dict[str, Any]]] = {
    "rollout.started": ("info", PAIR | {"exposed": CANARY}),
    "rollout.advanced": ("info", PAIR | PASSED | {"exposed": CANARY | {"percent": 10.0}, "exposed_before": CANARY}),
    "rollout.awaiting_approval": ("warning", PAIR | PASSED | STAYS),
    "rollout.approval_lapsed": ("warning", PAIR | BROKEN | STAYS),
    "rollout.awaiting_decision": ("warning", PAIR | UNSURE | STAYS),
    "rollout.promoted": (
        "warning",
        PAIR | PASSED | {"exposed": ACTIVE, "exposed_before": CANARY | {"percent": 100.0}},
    ),
    "rollout.completed": ("info", PAIR | {"exposed": ACTIVE, "exposed_before": ACTIVE}),
    "rollout.rolled_back": ("critical", PAIR | BROKEN | {"exposed": NOBODY, "exposed_before": CANARY}),
    "rollout.frozen": ("warning", PAIR | UNSURE | {"gate": "harm", "exposed": CANARY}),
    "rollout.start_refused": ("warning", {"version": "2", "exposed": NOBODY}),
    "rollout.symbol_excluded": ("warning", PAIR | {"symbol": "GOLD", "exposed": CANARY}),
    "canary.capital_exceeded": (
        "warning",
        PAIR | {"exposed": CANARY | {"percent": 3.2}, "exposed_before": CANARY, "capital_share": 0.07},
    ),
    "rollout.blind": ("warning", PAIR | {"exposed": CANARY}),
    "rollout.tick_overdue": ("critical", PAIR | {"exposed": CANARY}),
    "version.tampered": ("critical", {"version": "2", "exposed": CANARY}),
    "version.refused": ("critical", {"version": "1", "exposed": ACTIVE}),
    "shadow.isolation_breach": ("warning", {"version": "3", "exposed": NOBODY}),
    "feed.stale": ("warning", {"version": "2", "exposed": CANARY}),
    "shadow.overdue": ("warning", {"version": "2", "exposed": CANARY}),
    "candles.absent": ("critical", {"version": "1", "exposed": ACTIVE}),
    "candle.revised": ("warning", {"version": "2", "exposed": CANARY}),
    "alerts.channel_failed": ("warning", {"channel": "slack-1f2e3d4c"}),
    "audit.broken": ("critical", {}),
    "strategy.closed": ("warning", {"version": "1", "exposed": NOBODY, "exposed_before": ACTIVE}),
    "host.overloaded": ("critical", {"version": "2", "exposed": CANARY}),
    "incident.ended": ("info", {"incident": "feed.stale"}),
    "positions.orphaned": ("critical", {}),
    "positions.overdue": ("warning", {}),
    "canary.open_risk_exceeded": ("warning", {}),
    "race.nominated": ("warning", {"version": "2", "started": False}),
    "race.lead_lost": ("warning", {"version": "2", "ended": False}),
    "report.ready": ("info", {"version": "2", "report": "0a1b2c3d", "report_kind": "final"}),
    "proposal.waiting": ("warning", {"version": "2", "proposal": "0a1b2c3d-0000-4000-8000-000000000002"}),
    "user.loss_limit": ("warning", {}),
    "owner.request_waiting": ("critical", {"request": "0a1b2c3d-0000-4000-8000-000000000001"}),
    "clock.disagrees": ("critical", PAIR | {"exposed": CANARY}),
    "watch.harm": ("critical", PAIR | WATCHED | {"verdict": "fail", "value": 2.7, "exposed": ACTIVE}),
    "watch.likely_harm": ("warning", PAIR | WATCHED | {"exposed": ACTIVE}),
}
SAID = {
    "rollout.started": [
        "[info] fib_rsi 2: started",
        "users: 5 % (412) get it; for 4 days, since 2026-03-02 00:00 UTC",
        'to undo: rollout rollback fib_rsi --reason "..."',
    ],
    "rollout.advanced": [
        "[info] fib_rsi 2: advanced to more users",
        "users: 10 % (824) now, 5 % (412) before; for 4 days, since 2026-03-02 00:00 UTC",
        "gate not_worse: pass, value 0.012 (-0.02 to 0.044) against limit -0.1, n 120",
        'to undo: rollout rollback fib_rsi --reason "..."',
    ],
    "rollout.awaiting_approval": [
        "[warning] fib_rsi 2: waits for your approval",
        "users: 5 % (412) get it; for 4 days, since 2026-03-02 00:00 UTC",
        "gate not_worse: pass, value 0.012 (-0.02 to 0.044) against limit -0.1, n 120",
        'to continue: rollout approve fib_rsi --reason "..."',
        'or: rollout rollback fib_rsi --reason "..."',
    ],
    "rollout.approval_lapsed": [
        "[warning] fib_rsi 2: the approval has lapsed",
        "users: 5 % (412) get it; for 4 days, since 2026-03-02 00:00 UTC",
        "gate losing_streak: breach, value 40 against limit 12, n 40",
        "details: rollout status fib_rsi",
    ],
    "rollout.awaiting_decision": [
        "[warning] fib_rsi 2: waits for your decision",
        "users: 5 % (412) get it; for 4 days, since 2026-03-02 00:00 UTC",
        "gate not_worse: inconclusive, value 0.012 (-0.02 to 0.044) against limit -0.1, n 120",
        'answer: rollout decide fib_rsi extend --reason "..."',
        'or: rollout decide fib_rsi advance --reason "..."',
        'or: rollout rollback fib_rsi --reason "..."',
    ],
    "rollout.promoted": [
        "[warning] fib_rsi 2: promoted, baking",
        "users: 100 % (8,240) get it; for 4 days, since 2026-03-02 00:00 UTC",
        "gate not_worse: pass, value 0.012 (-0.02 to 0.044) against limit -0.1, n 120",
        'to reinstate 1: rollout rollback fib_rsi --reason "..."',
        "details: rollout status fib_rsi",
    ],
    "rollout.completed": [
        "[info] fib_rsi 2: completed",
        "users: 100 % (8,240) get it; for 0 s, since 2026-03-06 00:00 UTC",
        'to undo: rollout rollback fib_rsi --version 2 --reason "..."',
    ],
    "rollout.rolled_back": [
        "[critical] fib_rsi 2: rolled back",
        "users: 0 % now, 5 % (412) before; for 4 days, since 2026-03-02 00:00 UTC",
        "gate losing_streak: breach, value 40 against limit 12, n 40",
        "details: rollout verdicts fib_rsi",
        'acknowledge: rollout alerts acknowledge 17 --reason "..."',
    ],
    "rollout.frozen": [
        "[warning] fib_rsi 2: held: harm is likely but not proven",
        "users: 5 % (412) get it; for 4 days, since 2026-03-02 00:00 UTC",
        "gate harm: inconclusive, value 0.012 (-0.02 to 0.044) against limit -0.1, n 120",
        "details: rollout verdicts fib_rsi --gate harm",
        'to undo: rollout rollback fib_rsi --reason "..."',
    ],
    "rollout.start_refused": [
        "[warning] fib_rsi 2: the scheduled start was refused",
        "users: none get it",
        "details: rollout status fib_rsi",
    ],
    "rollout.symbol_excluded": [
        "[warning] fib_rsi 2: a symbol is excluded from the canary",
        "users: 5 % (412) get it; for 4 days, since 2026-03-02 00:00 UTC",
        "details: rollout status fib_rsi",
    ],
    "canary.capital_exceeded": [
        "[warning] fib_rsi 2: holds more capital than its cap",
        "users: 3.2 % (264) now, 5 % (412) before; for 4 days, since 2026-03-02 00:00 UTC",
        "details: rollout status fib_rsi",
    ],
    "rollout.blind": [
        "[warning] fib_rsi 2: blind: no evidence",
        "users: 5 % (412) get it; for 4 days, since 2026-03-02 00:00 UTC",
        "details: rollout status fib_rsi",
        'to undo: rollout rollback fib_rsi --reason "..."',
    ],
    "rollout.tick_overdue": [
        "[critical] fib_rsi 2: tick overdue: its users are not protected",
        "users: 5 % (412) get it; for 4 days, since 2026-03-02 00:00 UTC",
        "run now: rollout tick",
        'or: rollout rollback fib_rsi --reason "..."',
        'acknowledge: rollout alerts acknowledge 17 --reason "..."',
    ],
    "version.tampered": [
        "[critical] fib_rsi 2: not the build that was registered",
        "users: 5 % (412) get it; for 4 days, since 2026-03-02 00:00 UTC",
        'to undo: rollout rollback fib_rsi --reason "..."',
        'acknowledge: rollout alerts acknowledge 17 --reason "..."',
    ],
    "version.refused": [
        "[critical] fib_rsi 1: refused to run",
        "users: 100 % (8,240) get it; for 0 s, since 2026-03-06 00:00 UTC",
        'to undo: rollout rollback fib_rsi --version 1 --reason "..."',
        'acknowledge: rollout alerts acknowledge 17 --reason "..."',
    ],
    "shadow.isolation_breach": [
        "[warning] fib_rsi 3: isolation breach blocked",
        "users: none get it",
        'to retire it: rollout retire fib_rsi 3 --reason "..."',
    ],
    "feed.stale": [
        "[warning] fib_rsi 2: the feed is stale",
        "users: 5 % (412) get it; for 4 days, since 2026-03-02 00:00 UTC",
        "details: rollout status fib_rsi",
        'to undo: rollout rollback fib_rsi --reason "..."',
    ],
    "shadow.overdue": [
        "[warning] fib_rsi 2: shadow run overdue: no new decisions",
        "users: 5 % (412) get it; for 4 days, since 2026-03-02 00:00 UTC",
        "run now: rollout shadow",
        'or: rollout rollback fib_rsi --reason "..."',
    ],
    "candles.absent": [
        "[critical] fib_rsi 1: has no candles",
        "users: 100 % (8,240) get it; for 0 s, since 2026-03-06 00:00 UTC",
        "details: rollout status fib_rsi",
        'acknowledge: rollout alerts acknowledge 17 --reason "..."',
    ],
    "candle.revised": [
        "[warning] fib_rsi 2: decided on a candle that was revised",
        "users: 5 % (412) get it; for 4 days, since 2026-03-02 00:00 UTC",
        "details: rollout status fib_rsi",
    ],
    "alerts.channel_failed": [
        "[warning] slack-1f2e3d4c: this alert channel has failed for too long",
        "try it: rollout alerts test slack-1f2e3d4c",
    ],
    "strategy.closed": [
        "[warning] fib_rsi 1: closed: no version serves its users",
        "users: 0 % now, 100 % (8,240) before; for 0 s, since 2026-03-06 00:00 UTC",
        'to reopen: rollout activate fib_rsi 1 --reason "..."',
    ],
    "audit.broken": [
        "[critical] fib_rsi: the audit trail does not hold",
        "details: rollout audit verify",
        'acknowledge: rollout alerts acknowledge 17 --reason "..."',
    ],
    "host.overloaded": [
        "[critical] fib_rsi 2: the host is too slow to run versions",
        "users: 5 % (412) get it; for 4 days, since 2026-03-02 00:00 UTC",
        "details: rollout status fib_rsi",
        'acknowledge: rollout alerts acknowledge 17 --reason "..."',
    ],
    "positions.orphaned": [
        "[critical] fib_rsi: open positions have no manager that decides",
        "details: rollout positions fib_rsi",
        'acknowledge: rollout alerts acknowledge 17 --reason "..."',
    ],
    "positions.overdue": [
        "[warning] fib_rsi: positions are open though they are to be left",
        "details: rollout positions fib_rsi",
    ],
    "canary.open_risk_exceeded": [
        "[warning] fib_rsi: the canary has more open risk than its limit",
        "details: rollout positions fib_rsi",
    ],
    "race.nominated": [
        "[warning] fib_rsi 2: leads its race",
        "to start its rollout: rollout start fib_rsi 2",
        "details: rollout race status fib_rsi",
    ],
    "race.lead_lost": [
        "[warning] fib_rsi 2: has lost the lead of its race",
        "details: rollout race status fib_rsi",
        'to take its users off it: rollout rollback fib_rsi --version 2 --reason "..."',
    ],
    "report.ready": [
        "[info] fib_rsi 2: final report",
        "details: rollout report 0a1b2c3d",
    ],
    "proposal.waiting": [
        "[warning] fib_rsi 2: an assistant's proposal waits for you",
        'to approve: rollout proposals approve 0a1b2c3d-0000-4000-8000-000000000002 --reason "..."',
        'or: rollout proposals reject 0a1b2c3d-0000-4000-8000-000000000002 --reason "..."',
        "details: rollout status fib_rsi",
    ],
    "incident.ended": [
        "[info] fib_rsi: over: the feed is stale",
        "details: rollout status fib_rsi",
    ],
    "user.loss_limit": [
        "[warning] fib_rsi: the loss limit of users is reached",
        "details: rollout exclusions list fib_rsi",
    ],
    "owner.request_waiting": [
        "[critical] fib_rsi: an owner's request waits",
        "details: rollout status fib_rsi",
        'acknowledge: rollout alerts acknowledge 17 --reason "..."',
    ],
    "clock.disagrees": [
        "[critical] fib_rsi 2: the clocks disagree: missing ticks cannot be seen",
        "users: 5 % (412) get it; for 4 days, since 2026-03-02 00:00 UTC",
        "details: rollout db clock",
        'acknowledge: rollout alerts acknowledge 17 --reason "..."',
    ],
    "watch.harm": [
        "[critical] fib_rsi 2: earns less than its predecessor",
        "users: 100 % (8,240) get it; for 0 s, since 2026-03-06 00:00 UTC",
        "gate watch: fail, value 2.7 against limit 2.60206, n 240",
        'to undo: rollout rollback fib_rsi --version 2 --reason "..."',
        'acknowledge: rollout alerts acknowledge 17 --reason "..."',
    ],
    "watch.likely_harm": [
        "[warning] fib_rsi 2: seems to earn less than its predecessor",
        "users: 100 % (8,240) get it; for 0 s, since 2026-03-06 00:00 UTC",
        "gate watch: inconclusive, value 1.2 against limit 2.60206, n 240",
        'to undo: rollout rollback fib_rsi --version 2 --reason "..."',
    ],
}


def raised(kind: str, severity: str = "warning", facts: dict[str, Any] | None = None, **given: Any) -> Raised:
    strategy_name = "" if kind.startswith("alerts.") else "fib_rsi"
    what: dict[str, Any] = {"strategy_name": strategy_name, "text": "what was said", "dedupe_key": "key", **given}
    return Raised(id=17, at=MONDAY + 4 * DAY, severity=Severity(severity), kind=kind, facts=facts or {}, **what)


def of_8240(_strategy_name: str, exposed: Exposed) -> int:
    return round(82.4 * exposed.percent)


@pytest.mark.parametrize("kind", HEADLINES)
def test_every_kind_is_told_word_for_word(kind: str) -> None:
    severity, facts = RAISED[kind]

    told = message(raised(kind, severity, facts), count=of_8240)

    title, *lines = SAID[kind]
    assert told.title == title
    footer = "alert 17 of 2026-03-06 00:00 UTC; id 2c70e12b7a06-1"
    assert told.body.splitlines() == ["what was said", *lines, footer]
    assert told.id == "2c70e12b7a06-1"


@pytest.mark.parametrize("kind", HEADLINES)
def test_every_kind_names_a_command_that_acts(kind: str) -> None:
    severity, facts = RAISED[kind]

    told = message(raised(kind, severity, facts))

    assert told.action.startswith("rollout ")
    assert told.action in told.body
    if severity == "critical":
        assert 'rollout alerts acknowledge 17 --reason "..."' in told.body


CONSOLE = "https://rollout.example.org/console"
LINKS = Links(CONSOLE, {name: f"https://prefect.example.org/{name}/run" for name in ("rollback", "approve-stage")})


def test_an_alert_about_a_rollout_links_to_its_page_and_to_the_forms_of_its_commands() -> None:
    severity, facts = RAISED["rollout.awaiting_approval"]
    alert = raised("rollout.awaiting_approval", severity, facts, strategy_name="gold & [co](x)", rollout_id=ROLLOUT)

    told = message(alert, links=LINKS)

    name = "gold%20%26%20%5Bco%5D%28x%29"
    asked = f"%7B%22strategy_name%22%3A%20%22{name}%22"
    assert [line for line in told.body.splitlines() if "https://" in line] == [
        f"console: {CONSOLE}/strategies/{name}/rollouts/{ROLLOUT}",
        f"form to approve: https://prefect.example.org/approve-stage/run?parameters={asked}%7D",
        f"form to roll back: https://prefect.example.org/rollback/run?parameters={asked}%2C%20%22version%22%3A%20%222%22%7D",
    ]
    assert told.action == message(alert).action


@pytest.mark.parametrize("kind", HEADLINES)
def test_an_alert_offers_the_form_of_a_rollback_where_it_offers_the_command(kind: str) -> None:
    severity, facts = RAISED[kind]

    told = message(raised(kind, severity, facts), links=LINKS)

    assert ("form to roll back: " in told.body) == ("rollout rollback " in told.body)
    assert f"console: {CONSOLE}/" in told.body


def test_no_kind_that_a_service_raises_is_without_its_words() -> None:
    written = re.compile(
        r'"((?:rollout|strategy|version|candles?|feed|shadow|alerts|incident|host|owner|clock)\.[a-z_]+)"'
    )
    kinds = {kind for file in SERVICES.glob("*.py") for kind in written.findall(file.read_text())}

    assert kinds
    assert kinds <= set(HEADLINES)


def test_without_a_directory_users_are_a_percent_alone() -> None:
    told = message(raised("rollout.blind", facts=PAIR | {"exposed": CANARY}))

    assert "users: 5 % get it; for 4 days" in told.body


def test_an_alert_of_an_earlier_release_is_told_with_what_it_has() -> None:
    told = message(raised("rollout.rolled_back", "critical", {"before": {"percent": 5.0}, "value": "many"}))

    assert told.title == "[critical] fib_rsi: rolled back"
    assert told.body.splitlines()[0] == "what was said"
    assert told.action == "rollout verdicts fib_rsi"


def test_a_repetition_says_so_and_has_an_id_of_its_own() -> None:
    first, again = (message(raised("rollout.blind"), number=number) for number in (1, 3))

    assert (first.id, again.id) == ("2c70e12b7a06-1", "2c70e12b7a06-3")
    assert "sent 3 times" in again.body


def test_a_name_that_a_shell_would_misread_is_quoted() -> None:
    told = message(raised("rollout.blind", strategy_name="gold & co"))

    assert told.action == "rollout status 'gold & co'"


def test_what_a_version_says_cannot_forge_lines_nor_grow_without_end() -> None:
    told = message(raised("version.refused", text="boom\nto undo: rm -rf /\x1b[2J" + "x" * 10_000))

    first = told.body.splitlines()[0]
    assert first.startswith("boom to undo: rm -rf / [2J")
    assert len(first) <= LONGEST + 2


SCALAR = st.none() | st.booleans() | st.floats() | st.integers() | st.sampled_from(["", "2", "2026-03-02", "x\n"])
SHARE = SCALAR | st.fixed_dictionaries({}, optional={"role": SCALAR, "percent": SCALAR, "since": SCALAR})
FACTS = st.fixed_dictionaries(
    {}, optional=dict.fromkeys([*PAIR, *PASSED, "channel"], SCALAR) | {"exposed": SHARE, "exposed_before": SHARE}
)


@given(kind=st.sampled_from([*HEADLINES, "new.kind"]), severity=st.sampled_from(list(Severity)), facts=FACTS)
def test_whatever_stands_in_a_row_there_is_a_message(kind: str, severity: Severity, facts: dict[str, Any]) -> None:
    told = message(raised(kind, severity, facts))

    assert isinstance(told, Message)
    assert told.title.startswith(f"[{severity}]")


@pytest.mark.parametrize(
    ("at_least", "heard"),
    [("info", ["info", "warning", "critical"]), ("warning", ["warning", "critical"]), ("critical", ["critical"])],
)
def test_a_channel_gets_its_severity_and_worse(at_least: str, heard: list[str]) -> None:
    assert Severity(at_least).and_worse == heard


def test_a_gate_is_shown_as_owners_read_it() -> None:
    shown = {"title": "harm", "value": "E 616", "limit": "E 100", "count": "30 slots"}
    silent = {"title": "up to date", "value": "—", "limit": "—", "count": "—"}

    proven = message(
        raised("rollout.rolled_back", "critical", {"gate": "harm", "verdict": "fail", "value": 2.8, "shown": shown})
    )
    blind = message(raised("rollout.blind", "warning", {"gate": "freshness", "verdict": "blind", "shown": silent}))

    assert "harm: fail, E 616 against limit E 100, 30 slots" in proven.body.splitlines()
    assert "up to date: blind" in blind.body.splitlines()


@pytest.mark.parametrize(
    ("kind", "done", "last"),
    [
        ("race.nominated", "started", 'to undo: rollout rollback fib_rsi --version 2 --reason "..."'),
        ("race.lead_lost", "ended", "details: rollout race status fib_rsi"),
    ],
)
def test_what_a_race_has_done_itself_asks_for_nothing(kind: str, done: str, last: str) -> None:
    told = message(raised(kind, "info", {"version": "2", done: True}))

    assert told.body.splitlines()[-2] == last
