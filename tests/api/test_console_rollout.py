"""The console's page on a rollout: what it shows, and what owners do on it."""

import re
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Engine, text

from strategy_core.domain.audit import Command
from strategy_core.domain.plan import Plan
from strategy_core.domain.ramp import State
from strategy_core.domain.routing import bucket_of
from strategy_core.services.live_trades import ingest
from strategy_core.services.release_times import set_freeze
from strategy_core.services.rollback import roll_back
from strategy_core.services.rollouts import pause, resume, start_rollout
from strategy_core.services.users import load_users
from strategy_core.services.versions import activate_version
from strategy_core.settings import Settings
from strategy_core.store import alerts, audit, rollouts
from strategy_core.store.engine import reading, transaction
from strategy_core.store.tables import AuditEvent
from tests.api.asking import FEED, Api, World, put_state, verdict
from tests.api.browsing import Browser, hidden_fields, text_of
from tests.api.signing import NOW, token
from tests.builders import HOUR, MONDAY, OWNER

MARKUP = "<script>alert(1)</script><b onclick=x>'\"&"
WHY = "users lose money"


@pytest.fixture
def browser(api: Api) -> Browser:
    return Browser(api).log_in()


def path(world: World, act: str = "") -> str:
    return f"/strategies/fib_rsi/rollouts/{world.rollout}{act and '/' + act}"


def events(engine: Engine, *, skip: int = 1) -> list[AuditEvent]:
    """Return the rollout's events after its start."""
    with reading(engine) as session:
        return [each for each in audit.events(session, "fib_rsi") if each.rollout_id is not None][skip:]


def test_a_strategy_leads_to_its_open_rollout(browser: Browser, world: World) -> None:
    response = browser.get("/strategies/fib_rsi/rollout")

    assert response.headers["location"] == f"/console{path(world)}"
    assert browser.get(f"/rollouts/{world.rollout}").headers["location"] == f"/console{path(world)}"
    assert browser.get("/strategies/ppo_gold/rollout").status_code == 404


def test_the_page_begins_with_the_verdict_and_offers_what_is_possible_now(browser: Browser, world: World) -> None:
    page = browser.get(path(world)).text

    assert "Safe so far: every gate passes. 100 %, after your approval, in 14.5 h." in page
    assert page.index("Safe so far") < page.index("Stages") < page.index("Gates, worst first") < page.index("happened")
    assert [act for act in ACTS if f'{path(world, act)}"' in page] == ["pause", "exclude", "rollback"]
    assert "needs an approval" in page
    assert "rollout rollback fib_rsi --reason" in page


@pytest.mark.parametrize("act", ["results", "report", "report.json"])
def test_what_takes_longer_has_pages_of_its_own(browser: Browser, world: World, act: str) -> None:
    response = browser.get(path(world, act))

    assert response.status_code == 200
    assert "fib_rsi" in response.text


ACTS: dict[str, tuple[State, dict[str, Any], str, str]] = {
    "approve": (State.AWAITING_APPROVAL, {}, "approve", "Fib_rsi 2 is approved for 100 %"),
    "extend": (State.AWAITING_DECISION, {}, "extend", "has more time"),
    "resume": (State.PAUSED, {}, "resume", "is running again"),
    "pause": (State.RUNNING, {}, "pause", "is paused"),
    "exclude": (State.RUNNING, {"symbol": "OIL"}, "exclude_symbol", "no longer serves OIL"),
    "rollback": (State.RUNNING, {}, "roll_back", "is rolled back"),
}


@pytest.mark.parametrize("act", ACTS)
def test_an_act_is_done_with_its_reason_and_leads_back_with_a_line(
    browser: Browser, engine: Engine, world: World, act: str
) -> None:
    state, fields, action, line = ACTS[act]
    put_state(engine, state)

    response = browser.post(path(world, act), reason=WHY, **fields)

    assert response.headers["location"] == f"/console{path(world)}"
    (event,) = events(engine)
    assert (event.action, event.actor, event.source, event.reason) == (action, "ana", "console", WHY)
    assert line.lower() in browser.follow(response).text.lower()


def test_a_choice_to_advance_anyway_promotes_from_the_last_stage(
    browser: Browser, engine: Engine, world: World
) -> None:
    with transaction(engine) as session:
        rollout = rollouts.get_rollout(session, UUID(world.rollout))
        rollouts.set_excluded(session, "fib_rsi", {})
        changes = {"state": State.AWAITING_DECISION.value, "stage_index": 1, "last_tick_at": NOW}
        rollouts.change_rollout(session, rollout, **changes)
    asked = browser.get(path(world, "advance")).text

    response = browser.post(path(world, "advance"), reason=WHY)

    assert "2 becomes the active version now, without an answer from the gates." in asked
    assert "1 stays in shadow for 7 days, ready to come back." in asked
    assert "fib_rsi 2 is the active version" in browser.follow(response).text
    assert "Roll back to 1" in browser.get(path(world)).text


@pytest.mark.parametrize(
    ("act", "lines"),
    [
        pytest.param("rollback", ["users of 240 return to 1 at their next signal", "are not closed"], id="rollback"),
        pytest.param("approve", ["from 5 % to 100 %", "more users get 2 at their next signal"], id="approve"),
        pytest.param("pause", ["users of 240 stay on 2 until you resume", "proven harm still"], id="pause"),
        pytest.param("exclude", ["users of 240 get 1 on this symbol", "is not promoted"], id="exclude"),
    ],
)
def test_an_act_first_shows_what_it_will_do_to_how_many_users(
    browser: Browser, engine: Engine, world: World, act: str, lines: list[str]
) -> None:
    load_users(engine, [(f"u{number}", None) for number in range(240)], now=MONDAY)
    if act == "approve":
        put_state(engine, State.AWAITING_APPROVAL)

    page = browser.get(path(world, act)).text

    for line in lines:
        assert line in page
    assert events(engine) == []


@pytest.mark.parametrize("act", ["rollback", "exclude"])
def test_an_act_without_its_reason_is_refused(browser: Browser, engine: Engine, world: World, act: str) -> None:
    response = browser.post(path(world, act), reason="  ", symbol="OIL")

    assert response.status_code == 422
    assert "a few words that explain why" in response.text
    assert events(engine) == []


def test_an_approval_for_all_users_without_a_reason_is_refused(browser: Browser, engine: Engine, world: World) -> None:
    put_state(engine, State.AWAITING_APPROVAL)
    asked = browser.get(path(world, "approve")).text

    response = browser.post(path(world, "approve"), reason="  ")

    assert "required autofocus" in asked
    assert response.status_code == 422
    assert "Cannot approve the last stage of" in response.text
    assert events(engine) == []


def test_an_approval_says_that_a_freeze_holds_its_step(browser: Browser, engine: Engine, world: World) -> None:
    put_state(engine, State.AWAITING_APPROVAL)
    set_freeze(engine, Command(OWNER, NOW), strategy_name="fib_rsi", ends_at=NOW + HOUR)

    asked = browser.get(path(world, "approve")).text
    response = browser.post(path(world, "approve"), reason=WHY)

    assert "The step waits: frozen" in asked
    page = browser.follow(response).text
    assert "The step waits: frozen" in page
    assert "next tick takes the step" not in page


def test_a_page_with_old_figures_says_how_old_they_are(browser: Browser, world: World) -> None:
    page = browser.get(path(world)).text

    assert "Its gates have not run for 9.5 h: these figures are old, and its users are not protected." in page


def test_a_refused_act_shows_why_and_keeps_what_was_typed(browser: Browser, engine: Engine, world: World) -> None:
    response = browser.post(path(world, "approve"), reason="looks good")

    assert response.status_code == 409
    assert "Cannot approve: the rollout is running" in response.text
    assert "looks good</textarea>" in response.text
    assert events(engine) == []


def test_an_act_on_what_has_changed_meanwhile_is_refused(browser: Browser, engine: Engine, world: World) -> None:
    form = hidden_fields(browser.get(path(world, "pause")).text)
    for change in (pause, resume):
        change(engine, Command(OWNER, NOW), strategy_name="fib_rsi")

    response = browser.send(path(world, "pause"), {**form, "reason": WHY})

    assert response.status_code == 409
    assert "changed meanwhile" in response.text
    assert [each.action for each in events(engine)] == ["pause", "resume"]


@pytest.mark.parametrize("act", ["pause", "rollback"])
def test_a_form_that_is_sent_twice_acts_once(browser: Browser, engine: Engine, world: World, act: str) -> None:
    form = hidden_fields(browser.get(path(world, act)).text) | {"reason": WHY}

    first, second = browser.send(path(world, act), form), browser.send(path(world, act), form)

    assert first.headers["location"] == second.headers["location"]
    assert "already" in browser.follow(second).text
    assert len(events(engine)) == 1


def test_a_rollback_is_not_refused_for_being_late(browser: Browser, engine: Engine, world: World) -> None:
    form = hidden_fields(browser.get(path(world, "rollback")).text)
    with transaction(engine) as session:
        rollout = rollouts.get_rollout(session, UUID(world.rollout))
        rollouts.change_rollout(session, rollout, reason="another generation")

    response = browser.send(path(world, "rollback"), {**form, "reason": WHY})

    assert "No user gets it" in browser.follow(response).text
    assert "generation" not in form


def test_a_rollback_is_possible_while_its_page_cannot_be_read(browser: Browser, engine: Engine, world: World) -> None:
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE directory_tally"))

    asked = browser.get(path(world, "rollback"))
    response = browser.post(path(world, "rollback"), reason=WHY)

    assert "The database cannot be read now" in asked.text
    assert response.status_code == 303
    assert [each.action for each in events(engine)] == ["roll_back"]


def test_a_rollout_with_a_plan_of_an_earlier_release_can_be_rolled_back(
    browser: Browser, engine: Engine, world: World
) -> None:
    on = "" if engine.dialect.name == "sqlite" else " ON rollout"
    with engine.begin() as connection:
        connection.execute(text(f"DROP TRIGGER refuse_update_rollout{on}"))
        connection.execute(text("UPDATE rollout SET plan = '{\"stages\": []}'"))

    page = browser.get(path(world))

    assert "the plan of this rollout cannot be read" in page.text
    assert f'{path(world, "rollback")}"' in page.text
    assert browser.post(path(world, "rollback"), reason=WHY).status_code == 303


def test_a_second_rollback_shows_who_did_the_first(browser: Browser, engine: Engine, world: World) -> None:
    form = hidden_fields(browser.get(path(world, "rollback")).text)
    roll_back(engine, Command(OWNER, NOW, "bleeds"), strategy_name="fib_rsi")

    response = browser.send(path(world, "rollback"), {**form, "reason": WHY})

    assert "rolled back already, at 2026-03-02 09:30 UTC by ana" in browser.follow(response).text


def test_a_viewer_sees_no_button_and_is_refused(api: Api, engine: Engine, world: World) -> None:
    viewer = Browser(api).log_in("reader")

    page = viewer.get(path(world)).text

    assert "Your token may read this rollout and not change it" in page
    assert not [act for act in ACTS if f'{path(world, act)}"' in page]
    assert [viewer.get(path(world, act)).status_code for act in ACTS] == [403] * len(ACTS)
    form = hidden_fields(page) | {"reason": WHY}
    assert [viewer.send(path(world, act), form).status_code for act in ACTS] == [403] * len(ACTS)
    assert events(engine) == []


def test_an_owner_of_other_strategies_sees_nothing_of_it(api: Api, engine: Engine, world: World) -> None:
    stranger = Browser(api).log_in("other")

    for each in ("", "rollback", "pause", "results", "report", "report.json", "acknowledge"):
        assert stranger.get(path(world, each)).status_code == 403
    form = hidden_fields(stranger.get().text) | {"reason": WHY}
    assert stranger.send(path(world, "rollback"), form).status_code == 403
    assert events(engine) == []


def test_a_rollout_under_the_name_of_another_strategy_is_not_found(api: Api, world: World) -> None:
    browser = Browser(api).log_in(token(strategies=["ppo_gold"]))

    for each in ("", "rollback", "results", "report", "acknowledge"):
        assert browser.get(path(world, each).replace("fib_rsi", "ppo_gold")).status_code == 404


def test_who_started_a_rollout_does_not_approve_it_where_four_eyes_are_asked_for(engine: Engine, world: World) -> None:
    put_state(engine, State.AWAITING_APPROVAL)
    api = Api(engine, Settings(feed=FEED, four_eyes=True))
    browser = Browser(api).log_in()

    page = browser.get(path(world)).text
    response = browser.post(path(world, "approve"), reason=WHY)

    assert "You started this rollout: another owner must do this." in page
    assert f'{path(world, "approve")}"' not in page
    assert (response.status_code, events(engine)) == (403, [])
    assert Browser(api).log_in(token(sub="bob")).post(path(world, "approve"), reason=WHY).status_code == 303


def test_alerts_of_the_rollout_are_acknowledged(browser: Browser, engine: Engine, world: World) -> None:
    with transaction(engine) as session:
        facts: dict[str, Any] = {"severity": "warning", "strategy_name": "fib_rsi", "facts": {}, "now": NOW}
        for key, rollout_id in (("a", UUID(world.rollout)), ("b", UUID(world.rollout)), ("c", None)):
            alerts.raise_alert(session, "rollout.frozen", f"harm {key}", dedupe_key=key, rollout_id=rollout_id, **facts)
    page = browser.get(path(world)).text
    (number,) = (each.id for each in _alerts(engine) if each.text == "harm a")

    response = browser.post(path(world, "acknowledge"), **{f"alert-{number}": "on", "reason": "seen"})

    assert "2 open alerts" in page
    assert "1 alert acknowledged" in browser.follow(response).text
    assert [each.text for each in _alerts(engine) if each.acknowledged_at is not None] == ["harm a"]
    assert browser.post(path(world, "acknowledge")).status_code == 422


def test_an_owner_of_another_strategy_acknowledges_no_alert_of_the_rollout(
    api: Api, engine: Engine, world: World
) -> None:
    """The address names his strategy, and the rollout of another one."""
    with transaction(engine) as session:
        facts: dict[str, Any] = {"severity": "critical", "strategy_name": "fib_rsi", "facts": {}, "now": NOW}
        alerts.raise_alert(session, "rollout.frozen", "harm", dedupe_key="a", rollout_id=UUID(world.rollout), **facts)
    (number,) = (each.id for each in _alerts(engine) if each.text == "harm")
    stranger = Browser(api).log_in(token(strategies=["ppo_gold"]))
    form = hidden_fields(stranger.get().text) | {f"alert-{number}": "on", "reason": "seen"}

    response = stranger.send(path(world, "acknowledge").replace("fib_rsi", "ppo_gold"), form)

    assert response.status_code == 404
    assert [each for each in _alerts(engine) if each.acknowledged_at is not None] == []


def _alerts(engine: Engine) -> Any:
    with reading(engine) as session:
        return alerts.find_alerts(session, "fib_rsi")


def test_texts_with_markup_do_nothing(api: Api, engine: Engine, world: World) -> None:
    with transaction(engine) as session:
        session.add(verdict(UUID(world.rollout), gate="errors", ticked_at=MONDAY + 2 * HOUR, reason=MARKUP))
    browser = Browser(api).log_in(token(sub=MARKUP))
    browser.post(path(world, "pause"), reason=MARKUP)

    for each in ("", "results", "resume", "rollback"):
        page = browser.get(path(world, each)).text
        assert "<script>alert" not in page
        assert "<b " not in page
    assert browser.get(path(world)).text.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 3


def test_an_ended_rollout_shows_what_happened_and_what_to_do(browser: Browser, engine: Engine, world: World) -> None:
    roll_back(engine, Command(OWNER, NOW, WHY), strategy_name="fib_rsi")

    page = browser.get(path(world)).text

    assert f"Rolled back at 5 %: by ana: {WHY}." in page
    assert "1 serves all users" in page
    assert not [act for act in ACTS if f'{path(world, act)}"' in page]


def test_the_page_of_a_rolled_back_version_counts_its_positions_until_they_are_closed(
    browser: Browser, engine: Engine, world: World
) -> None:
    trades = [
        {"trade_id": f"t{number}", "user_id": f"u{number}", "strategy_name": "fib_rsi", "version": "2"}
        | {"symbol": "GOLD", "opened_at": MONDAY}
        for number in range(3)
    ]
    ingest(engine, trades, now=NOW)
    before = browser.get(path(world)).text
    roll_back(engine, Command(OWNER, NOW, WHY), strategy_name="fib_rsi")
    closed = [each | {"closed_at": NOW + HOUR, "pnl": 1.0, "risk": 1.0} for each in trades]

    ingest(engine, closed[:1], now=NOW + HOUR)
    first = text_of(browser.get(path(world)).text)
    ingest(engine, closed[1:], now=NOW + HOUR)
    last = text_of(browser.get(path(world)).text)

    assert "draining" not in before
    assert "2 draining 3 → 2 : 2 positions of 3 are still open. 2 decides when to leave them." in first
    assert "2 draining 3 → 0 : all its positions are closed." in last


def test_a_stage_that_the_cap_on_capital_has_narrowed_says_what_it_got(
    browser: Browser, engine: Engine, world: World
) -> None:
    roll_back(engine, Command(OWNER, NOW, WHY), strategy_name="fib_rsi")
    users = [f"u{number}" for number in range(400)]
    rich = [user for user in users if 300 < bucket_of(user) < 500]
    load_users(engine, [(user, 60.0 if user in rich else 20.0) for user in users], now=NOW)
    command = Command(OWNER, NOW, WHY, override_reason="its fault is mended")
    started = start_rollout(engine, command, strategy_name="fib_rsi", version="2", plan=Plan())

    page = text_of(browser.get(f"/strategies/fib_rsi/rollouts/{started.id}").text)

    share = re.search(r"Stages 5 % ([\d.]+) % of users, by the cap on capital", page)
    assert share is not None
    assert 3 <= float(share[1]) < 5
    assert f"{share[1]} % of users" in page
    assert "The stage asks for 5 %: its cap on capital leaves the others out. They hold" in page

    roll_back(engine, Command(OWNER, NOW + HOUR, WHY), strategy_name="fib_rsi")
    ended = text_of(browser.get(f"/strategies/fib_rsi/rollouts/{started.id}").text)
    assert f"At most {share[1]} % of users. It lasted" in ended


def test_a_promoted_version_is_rolled_back_from_the_page_of_its_rollout(
    browser: Browser, engine: Engine, world: World
) -> None:
    form = hidden_fields(browser.get(path(world, "rollback")).text)
    with transaction(engine) as session:
        rollouts.set_excluded(session, "fib_rsi", {})
    activate_version(engine, Command(OWNER, NOW, "good"), strategy_name="fib_rsi", version="2")

    response = browser.send(path(world, "rollback"), {**form, "reason": WHY})

    assert "fib_rsi 2 is rolled back" in browser.follow(response).text
    with reading(engine) as session:
        newest = audit.events(session, "fib_rsi")[-1]
    assert (newest.action, newest.after["active"]) == ("roll_back", "1")


@pytest.mark.parametrize(
    ("state", "act", "line"),
    [
        (State.PAUSED, "pause", "Cannot pause: the rollout is paused; allowed when"),
        (State.RUNNING, "resume", "Cannot resume: the rollout is running; allowed when paused."),
        (State.RUNNING, "approve", "Cannot approve: the rollout is running; allowed when awaiting approval."),
        (State.PAUSED, "advance", "Cannot advance: the rollout is paused; allowed when awaiting decision."),
        (
            State.AWAITING_APPROVAL,
            "extend",
            "Cannot extend: the rollout is awaiting approval; allowed when awaiting decision.",
        ),
    ],
)
def test_an_act_that_does_not_apply_says_so_and_shows_no_form(
    browser: Browser, world: World, state: State, act: str, line: str
) -> None:
    put_state(browser.api.engine, state)

    response = browser.get(path(world, act))

    assert response.status_code == 409
    assert line in response.text
    assert 'name="reason"' not in response.text


def test_the_page_states_the_risk_and_the_open_risk(browser: Browser, engine: Engine, world: World) -> None:
    traded = {"strategy_name": "fib_rsi", "version": "2", "symbol": "GOLD", "opened_at": MONDAY - HOUR}
    ingest(engine, [{"trade_id": "r1", "user_id": "ada", **traded}], now=NOW)

    page = browser.get(path(world)).text

    assert "20 are needed; its users are sent the full size." in page
    assert "Its positions have 50.0 % of the open risk, 1 open position, by number" in page
