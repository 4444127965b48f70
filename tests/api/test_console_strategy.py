"""The page on one strategy: versions and their difference, acts, results, and the form that registers a version."""

from datetime import timedelta
from typing import Any

import numpy as np
import pytest

from strategy_core.api.console.params_form import config_fields, read_config
from strategy_core.domain import race
from strategy_core.domain.audit import Command
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.plan import Plan
from strategy_core.services import queries
from strategy_core.services.race_tick import stored_row
from strategy_core.services.races import start_race
from strategy_core.services.release_times import set_freeze
from strategy_core.services.rollback import roll_back
from strategy_core.store import races, versions
from strategy_core.store.engine import reading, transaction
from tests.api.asking import PAST, Api, World
from tests.api.browsing import Browser, hidden_fields, text_of
from tests.api.signing import NOW, token
from tests.builders import DAY, HOUR, MONDAY, OWNER, put_version

GOLD = "/strategies/ppo_gold"
MARKUP = "<script>alert(1)</script>"
ESCAPED = "&lt;script&gt;alert(1)&lt;/script&gt;"
DAYS = {"from": f"{PAST:%Y-%m-%d}", "to": f"{PAST + timedelta(days=1):%Y-%m-%d}"}


@pytest.fixture
def browser(shared: tuple[Api, World]) -> Browser:
    return Browser(shared[0]).log_in()


@pytest.fixture
def owner(api: Api, world: World) -> Browser:
    assert world
    return Browser(api).log_in()


def status_of(owner: Browser, version: str) -> str:
    return queries.get_version(owner.api.engine, "ppo_gold", version).status


def test_the_page_shows_versions_and_rollouts(browser: Browser, shared: tuple[Api, World]) -> None:
    page = browser.get("/strategies/fib_rsi").text

    text = text_of(page)
    assert "1 is active, and 2 is the canary for 5 % of users." in text
    assert f"/console/strategies/fib_rsi/rollouts/{shared[1].rollout}" in page
    assert "/console/strategies/fib_rsi/start" not in page  # a rollout is open
    assert "/console/strategies/ppo_gold/start?version=3" in browser.get(GOLD).text


def test_a_past_rollout_is_shown_with_the_sentence_of_its_verdict(owner: Browser) -> None:
    roll_back(owner.api.engine, Command(OWNER, NOW, "odd fills"), strategy_name="fib_rsi")

    assert (
        "Rolled back at 5 %: by ana: odd fills."
        in text_of(owner.get("/strategies/fib_rsi").text).partition("Result")[2]
    )


@pytest.mark.parametrize(
    ("path", "held"),
    [("/strategies/fib_rsi", "other"), ("/strategies/ppo_gold/compare", "other"), ("/register", "reader")],
)
def test_another_scope_gets_403(shared: tuple[Api, World], path: str, held: str) -> None:
    assert Browser(shared[0]).log_in(held).get(path).status_code == 403


def test_a_viewer_sees_no_button_and_may_do_nothing(shared: tuple[Api, World]) -> None:
    viewer = Browser(shared[0]).log_in("reader")

    page = viewer.get(GOLD).text
    refused = [viewer.get(f"{GOLD}{each}").status_code for each in ("/versions/3/retire", "/register", "/replay")]

    assert "Versions" in page
    assert not [each for each in ("/retire", "/activate", "/register", "/replay", "/start") if each in page]
    assert refused == [403, 403, 403]


def test_markup_in_a_config_stays_text(api: Api) -> None:
    put_version(api.engine, "1", Status.ACTIVE, config={"note": "plain"}, registration_report={"warnings": [MARKUP]})
    put_version(api.engine, "2", config={"note": MARKUP, MARKUP: {"deep": [1, MARKUP]}})
    owner = Browser(api).log_in()

    pages = [owner.get("/strategies/fib_rsi?one=1&other=2").text, owner.get("/strategies/fib_rsi/compare").text]

    assert MARKUP not in "".join(pages)
    assert f"config.{ESCAPED}.deep" in pages[0]


def test_the_difference_names_each_changed_key(api: Api) -> None:
    put_version(api.engine, "1", Status.ACTIVE, config={"rsi_period": 14, "levels": {"deep": 0.6}, "same": 1})
    put_version(api.engine, "2", config={"rsi_period": 9, "levels": {"deep": 0.7}, "same": 1}, symbols=("GOLD", "OIL"))

    text = text_of(Browser(api).log_in().get("/strategies/fib_rsi?one=1&other=2").text)

    assert "config.rsi_period 14 9" in text
    assert "config.levels.deep 0.6 0.7" in text
    assert "symbols GOLD GOLD, OIL" in text
    assert "config.same" not in text


def test_two_versions_are_compared_over_a_period(browser: Browser) -> None:
    page = browser.get(f"{GOLD}/compare", params={"one": "1", "other": "2", **DAYS}).text

    assert "ppo_gold: 2 against 1" in page
    assert "3 decided by both versions, 3 of them from replay" in text_of(page)
    assert 'src="data:image/svg+xml;base64,' in page
    assert "style=" not in page


@pytest.mark.parametrize(
    ("path", "status", "problem"),
    [
        ("/compare?one=1&other=9", 404, "No version"),
        ("/compare?from=yesterday", 422, "2026-01-31"),
        ("/whatif?version=3", 409, "replayed"),
        ("/whatif?version=2&stage-0-percent=7", 422, "a value is needed"),
    ],
)
def test_a_wrong_question_is_answered_with_its_reason(browser: Browser, path: str, status: int, problem: str) -> None:
    response = browser.get(GOLD + path)

    assert response.status_code == status
    assert problem.lower() in response.text.lower()


def test_what_if_shows_how_a_rollout_would_have_gone(browser: Browser) -> None:
    page = browser.get(f"{GOLD}/whatif", params={"version": "2", **DAYS}).text

    assert "would still be at 5 %" in page
    assert "What this rests on" in page


def test_a_version_is_retired_and_activated(owner: Browser) -> None:
    shown = owner.get(f"{GOLD}/versions/2/activate").text
    owner.post(f"{GOLD}/versions/3/retire", reason="not needed")
    owner.post(f"{GOLD}/versions/2/activate", reason="better")

    assert "All users of ppo_gold get 2 from their next signal on." in shown
    assert "1 is retired and makes no more decisions." in shown
    assert [status_of(owner, version) for version in ("1", "2", "3")] == ["retired", "active", "retired"]


def test_open_positions_are_shown_and_keep_their_version(owner: Browser) -> None:
    page = text_of(owner.get("/strategies/fib_rsi").text)
    path = "/strategies/fib_rsi/versions/3/retire"

    refused = owner.post(path, reason="not needed")
    assert "Open positions Managed by Open Draining 3 1" in page
    assert refused.status_code == 409
    assert "manages 1 open positions" in refused.text

    fields = hidden_fields(owner.get(path).text) | {"reason": "not needed", "orphans_to": "flatten"}
    assert owner.send(path, fields).status_code == 303
    assert "none: to be closed 1" in text_of(owner.get("/strategies/fib_rsi").text)


def test_a_race_is_shown_with_how_its_versions_stand(owner: Browser) -> None:
    engine = owner.api.engine
    waiting = text_of(owner.get("/strategies/fib_rsi").text)
    for version in ("a", "b", "c"):
        at = MONDAY - DAY
        put_version(engine, version, Status.ACTIVE if version == "a" else Status.SHADOW, strategy_name="raced", at=at)
    start_race(engine, Command(OWNER, MONDAY), strategy_name="raced", candidates=["b", "c"], plan=Plan())
    with transaction(engine) as session:
        (found,) = races.list_races(session, ["raced"])
        pairs = race.begin(3)
        for day in range(60):
            rng = np.random.default_rng(day)
            r = np.column_stack([np.zeros(10), 0.5 + rng.standard_normal(10), -1.0 + rng.standard_normal(10)])
            pairs = race.add_day(pairs, race.Day(r, r < 9, r < 9))
        at_end = race.standings(pairs, [race.Entry(name) for name in "abc"], active="a", began=3)
        stored = [stored_row(row) for row in at_end.rows]
        races.add_standings(session, [{"race_id": found.id, "day": MONDAY, "active": "a", "rows": stored}])

    text = text_of(owner.get("/strategies/raced").text)

    assert "1 version against 1, started by ana. No day is counted yet" in waiting
    assert "2 versions against a, started by ana, counted from 2026-03-01 to 2026-03-02." in text
    assert "b running 600 +0.522 +0.232 to +0.797" in text
    assert "c eliminated 600 -1.0" in text
    assert "beaten by b" in text


def test_an_activation_in_a_freeze_is_refused_until_it_is_overridden(owner: Browser) -> None:
    set_freeze(owner.api.engine, Command(OWNER, NOW), strategy_name="*", ends_at=NOW + timedelta(days=1))
    admin = Browser(owner.api).log_in(token(role="admin"))
    path = f"{GOLD}/versions/2/activate"

    refused = admin.post(path, reason="better")
    done = admin.send(path, hidden_fields(refused.text) | {"reason": "better", "override_reason": "users lose money"})

    assert refused.status_code == 409
    assert "Activate it all the same, because" in refused.text
    assert (done.status_code, status_of(owner, "2")) == (303, "active")


def test_a_form_for_an_older_state_is_refused(owner: Browser) -> None:
    fields = hidden_fields(owner.get(f"{GOLD}/versions/2/activate").text)
    owner.post(f"{GOLD}/versions/3/retire", reason="not needed")

    response = owner.send(f"{GOLD}/versions/2/activate", fields | {"reason": MARKUP})

    assert response.status_code == 409
    assert ESCAPED in response.text
    assert status_of(owner, "2") == "shadow"


def test_a_replay_reports_what_it_decided(owner: Browser) -> None:
    end = PAST + 3 * HOUR

    response = owner.post(f"{GOLD}/replay", version="2", start=f"{PAST:%Y-%m-%dT%H:%MZ}", end=f"{end:%Y-%m-%dT%H:%MZ}")

    assert "ppo_gold 2: 3 candles, 0 of them new" in owner.follow(response).text


# Registration


def test_the_params_of_the_strategy_are_fields_with_their_bounds(browser: Browser) -> None:
    """Takes two seconds, in which the first worker starts."""
    page = browser.get("/strategies/fib_rsi/register?like=1").text

    assert 'type="number" id="f-config.rsi_period" name="config.rsi_period" value="14"' in page
    assert "At least 2, at most 200; default 14" in page or "at least 2, at most 200; default 14" in page
    assert 'name="config.fib_lookback_bars" value="55"' in page  # a default


@pytest.mark.full  # some seconds: its candles are vetted
def test_a_version_is_registered_from_its_fields(owner: Browser) -> None:
    fields = {"version": "9", "config.rsi_period": "9", "symbols": "GOLD", "timeframe": "1h", "status": "shadow"}

    response = owner.post("/strategies/fib_rsi/register", **fields, reason="quicker")

    assert response.status_code == 303, text_of(response.text)
    assert "determinism passed" in text_of(owner.follow(response).text)
    found = queries.get_version(owner.api.engine, "fib_rsi", "9")
    assert (found.status, found.config["rsi_period"], found.config["fib_lookback_bars"]) == ("shadow", 9, 55)


def test_a_refused_registration_shows_what_was_typed(owner: Browser) -> None:
    fields = {"version": "9", "config.rsi_period": "1", "config.rsi_oversold": "many", "symbols": "GOLD"}

    response = owner.post("/strategies/fib_rsi/register", **fields, reason=MARKUP)

    page = response.text
    assert response.status_code == 422
    assert 'name="config.rsi_oversold" value="many"' in page
    assert 'id="p-config.rsi_period">Input should be greater than or equal to 2' in page
    assert ESCAPED in page
    with reading(owner.api.engine) as session:
        assert "9" not in [each.version for each in versions.list_versions(session, "fib_rsi")]


def test_an_unknown_code_is_refused(browser: Browser) -> None:
    response = browser.get("/strategies/fib_rsi/register?entry_point=fib_rsy")

    assert response.status_code == 422
    assert "did you mean" in response.text.lower()


STRANGE: list[tuple[Any, dict[str, str], dict[str, Any]]] = [
    ({"properties": 7, "required": "x"}, {}, {}),
    ({"properties": {"a": 7, MARKUP: {"type": ["x"], "minimum": "low"}}}, {"config.a": "[1]"}, {"a": [1]}),
    ({"properties": {"a": {"$ref": "#/$defs/A"}}, "$defs": []}, {"config.a": "{"}, {"a": "{"}),
    (None, {"config": '{"a": 1}'}, {"a": 1}),
    ({"additionalProperties": True}, {"config": "[1]"}, {"config": [1]}),
    (
        {
            "properties": {
                "on": {"type": "boolean"},
                "n": {"anyOf": [{"type": "integer"}, {"type": "null"}], "default": None},
                "kind": {"enum": ["slow", "fast"]},
                "x": {"type": "number"},
            }
        },
        {"config.n": "12", "config.kind": "fast", "config.x": "1e3"},
        {"on": False, "n": 12, "kind": "fast", "x": 1000.0},
    ),
]


@pytest.mark.parametrize(("schema", "form", "config"), STRANGE, ids=map(str, range(len(STRANGE))))
def test_a_schema_of_any_form_makes_a_form(schema: Any, form: dict[str, str], config: dict[str, Any]) -> None:
    fields = config_fields(schema, {"a": [1]})

    assert all(one.name.startswith("config") for one in fields)
    assert read_config(schema, form) == config
