"""The form that starts a rollout: its fields and the plan, its preview, the confirmation, and who may use it."""

from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategy_core.api.console.plan_form import fields_of, read_fields, whole_form
from strategy_core.domain.audit import Command
from strategy_core.domain.gates.base import Margins
from strategy_core.domain.gates.on_metrics import MetricThreshold
from strategy_core.domain.gates.on_slots import Harm, NotWorse
from strategy_core.domain.plan import Plan, Stage
from strategy_core.domain.policy import Policy
from strategy_core.domain.release_times import ReleaseWindow
from strategy_core.domain.routing import bucket_of
from strategy_core.services import queries
from strategy_core.services.declarations import set_policy
from strategy_core.services.release_times import set_freeze
from strategy_core.services.rollback import roll_back
from strategy_core.services.rollouts import start_rollout
from strategy_core.services.scheduled_starts import list_starts
from strategy_core.services.users import load_users
from strategy_core.store import rollouts
from strategy_core.store.engine import reading
from tests.api.asking import Api, World
from tests.api.browsing import Browser, hidden_fields
from tests.api.signing import NOW, token
from tests.builders import DAY, MONDAY, OWNER, put_day, put_pair

PATH = "/strategies/ppo_gold/start"
MARKUP = '<img src=x onerror="alert(1)">'

spans = st.timedeltas(min_value=timedelta(microseconds=1), max_value=timedelta(days=5_000))
shares = st.floats(min_value=0, max_value=1, exclude_min=True, allow_nan=False)
margins = st.builds(
    Margins,
    pnl_r=shares,
    pnl_r_per_year=st.floats(min_value=0, max_value=1_000),
    win=st.none() | st.floats(min_value=0, max_value=0.5, exclude_min=True),
    pnl_of_edge=st.floats(min_value=0, max_value=1, exclude_max=True),
)
metrics = st.builds(
    MetricThreshold,
    metric=st.sampled_from(["slippage", "fees"]),
    query=st.sampled_from(['slip{version="$canary"} > 1', "fees - 2"]),
    minimum=st.none() | st.floats(allow_nan=False, allow_infinity=False, max_value=0),
    maximum=st.floats(allow_nan=False, allow_infinity=False, min_value=0),
    stale_after=spans,
    dry_run=st.booleans(),
)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    percents = sorted({*draw(st.lists(st.integers(1, 9_999), max_size=4)), 10_000})
    times = draw(st.lists(spans, min_size=len(percents), max_size=len(percents)))
    stages = tuple(
        Stage(percent=float(Decimal(bp) / 100), minimum_time=time, margins=draw(margins))
        for bp, time in zip(percents, times, strict=True)
    )
    standard = Plan().gates
    left = [gate.model_copy(update={"dry_run": draw(st.booleans())}) for gate in standard if draw(st.booleans())]
    changed = [each for each in left if not isinstance(each, Harm | NotWorse)]
    own = [
        Harm(alpha=draw(st.floats(1e-9, 0.49))),
        NotWorse(patience=draw(spans), tuned_for=draw(st.none() | st.just(7))),
    ]
    more = draw(st.lists(metrics, max_size=2, unique_by=lambda gate: gate.metric))
    windows = st.builds(
        ReleaseWindow,
        days=st.just(("mon", "fri")),
        opens=st.sampled_from(["00:00", "08:30"]),
        closes=st.sampled_from(["09:00", "24:00"]),
        time_zone=st.sampled_from(["UTC", "Europe/Berlin"]),
        market_open=st.sampled_from([None, "metals"]),
    )
    return Plan(
        stages=stages,
        advance_windows=tuple(draw(st.lists(windows, max_size=2))),
        approve_before=tuple(stage.percent for stage in stages if draw(st.booleans())),
        maximum_stage_time=max(times) + draw(spans),
        bake=draw(spans),
        blind_limit=draw(spans),
        on_inconclusive=draw(st.sampled_from(["hold", "rollback"])),
        watch=draw(st.sampled_from(["off", "alert", "rollback"])),
        gates=(*changed, *own, *more),
    )


@given(plans())
def test_a_form_describes_its_plan_exactly(plan: Plan) -> None:
    assert read_fields(fields_of(plan)).plan == plan


def test_the_standard_plan_is_the_default() -> None:
    assert read_fields(whole_form({})).plan == Plan()


def test_a_gate_that_a_link_leaves_out_is_not_off() -> None:
    asked = {"stage-0-percent": "100", "stage-0-days": "2", "stage-0-r": "0.1", "stage-0-r_year": "0"}

    read = read_fields(whole_form({**asked, "gate-silence-mode": "off"}))

    assert read.plan is not None
    kinds = {gate.kind for gate in read.plan.gates}
    assert kinds == {gate.kind for gate in Plan().gates} - {"silence"}


@pytest.mark.parametrize(
    ("field", "text", "problem"),
    [
        ("stage-0-percent", "many", "a number is needed, such as 0.15"),
        ("stage-1-r", "", "a value is needed"),
        ("stage-1-r", "2", "must be at most 1 R"),
        ("stage-2-days", "1e300", "too many days"),
        ("stage-2-days", "-1", "must be above 0 days"),
        ("gate-errors-share", "500", "must be at most 100 %"),
        ("gate-errors-in_a_row", "2.5", "a whole number is needed"),
        ("gate-harm-alpha", "0", "must be above 0 %"),
        ("window-0-opens", "25:00", "a time is HH:MM, 00:00 to 24:00"),
        ("gate-silence-candles", "1e99999999", "a number is needed, such as 0.15"),
        (
            "stage-4-percent",
            "90",
            "the last stage must be 100 %: a version is promoted only after it has served all users",
        ),
    ],
)
def test_a_wrong_value_has_its_reason_beside_its_field(field: str, text: str, problem: str) -> None:
    read = read_fields({**fields_of(Plan()), field: text})

    assert read.plan is None
    assert problem in read.problems.values()
    assert set(read.problems) <= {field, "plan", "window-0-days", "window-0-closes", "window-0-time_zone"}


@pytest.mark.parametrize(
    ("days", "problem"),
    [
        ("", "a value is needed"),
        ("monday", "Input should be 'mon', 'tue', 'wed', 'thu', 'fri', 'sat' or 'sun'"),
    ],
    ids=["none", "unknown"],
)
def test_wrong_days_of_a_window_have_the_reason_that_came_first(days: str, problem: str) -> None:
    window = {"opens": "09:00", "closes": "17:00", "time_zone": "UTC", "days": days}

    read = read_fields(fields_of(Plan()) | {f"window-0-{name}": text for name, text in window.items()})

    assert read.problems == {"window-0-days": problem}


# The pages


@pytest.fixture
def browser(shared: tuple[Api, World]) -> Browser:
    return Browser(shared[0]).log_in()


def asked(**changes: str) -> dict[str, str]:
    return {"version": "2", **fields_of(Plan()), **{name.replace("__", "-"): text for name, text in changes.items()}}


def test_the_form_shows_the_standard_plan_in_days_and_percent(browser: Browser) -> None:
    page = browser.get(PATH).text

    assert 'name="stage-0-percent" value="5"' in page
    assert 'name="maximum_stage_time" value="60"' in page
    assert "Slots in a row that the new version lost and the active version won." in page
    assert 'value="5184000"' not in page


def test_the_preview_shows_users_and_slots_of_the_typed_plan(browser: Browser) -> None:
    page = browser.get(f"{PATH}/preview", params=asked(stage__0__percent="7.5")).text

    region = page.partition('id="preview"')[2].partition("</aside>")[0]
    assert "7.5 %" in region
    assert "are too few to plan by" in region
    assert "No user list is loaded" in region


@pytest.mark.parametrize("step", ["preview", "confirm"])
def test_an_invalid_plan_is_shown_again_with_what_was_typed(browser: Browser, step: str) -> None:
    response = browser.get(f"{PATH}/{step}", params=asked(stage__1__percent="3", stage__0__days="soon", bake="9"))

    page = response.text
    assert response.status_code == 422
    assert 'name="stage-0-days" value="soon"' in page
    assert 'id="p-stage-0-days">A number is needed, such as 0.15.' in page
    assert 'name="bake" value="9"' in page


def test_texts_that_try_to_be_markup_stay_text(browser: Browser) -> None:
    typed = {"gate-metric-0-mode": "on", "gate-metric-0-metric": MARKUP, "gate-metric-0-query": MARKUP}

    page = browser.get(f"{PATH}/preview", params={**asked(), **typed}).text

    assert "<img" not in page
    assert "&lt;img src=x" in page


def test_a_plan_without_a_vote_is_refused(browser: Browser) -> None:
    off = {name: "informational" for name in fields_of(Plan()) if name.endswith("-mode")}

    page = browser.get(f"{PATH}/preview", params={**asked(), **off})

    assert page.status_code == 422
    assert "No gate has a vote" in page.text


def test_an_open_rollout_is_linked_and_no_form_is_shown(browser: Browser) -> None:
    page = browser.get("/strategies/fib_rsi/start").text

    assert "A rollout of 2 is open." in page
    assert 'id="plan"' not in page


@pytest.mark.parametrize("step", ["", "/preview", "/confirm"])
@pytest.mark.parametrize("held", ["reader", "other"])
def test_a_viewer_gets_403(shared: tuple[Api, World], held: str, step: str) -> None:
    viewer = Browser(shared[0]).log_in(HELD_TOKENS[held])

    assert viewer.get(PATH + step).status_code == 403


HELD_TOKENS = {
    "reader": token(scope="read"),
    "other": token(strategies=["fib_rsi"]),
}


def test_overlaps_name_no_strategy_outside_the_scope(shared: tuple[Api, World]) -> None:
    limited = Browser(shared[0]).log_in(token(strategies=["ppo_gold"]))

    assert (
        "reach some of the same users: fib_rsi 2 (5.0 %)"
        in Browser(shared[0]).log_in().get(f"{PATH}/preview", params=asked()).text
    )
    assert "fib_rsi" not in limited.get(f"{PATH}/preview", params=asked()).text


# The start


@pytest.fixture
def owner(api: Api, world: World) -> Browser:
    assert world
    return Browser(api).log_in()


def send(owner: Browser, fields: dict[str, str], **typed: Any) -> Any:
    """Open the confirmation of a plan, and send it."""
    page = owner.get(f"{PATH}/confirm", params=fields)
    assert page.status_code == 200, page.text
    return owner.send(f"{PATH}/confirm?{page.request.url.query.decode()}", hidden_fields(page.text) | typed)


def open_one(owner: Browser) -> Any:
    with reading(owner.api.engine) as session:
        return rollouts.open_rollout(session, "ppo_gold")


def test_a_start_is_confirmed_and_leads_to_the_rollout(owner: Browser) -> None:
    fields = asked(stage__0__percent="2.5", stage__0__days="3", gate__win_rate__mode="off")
    page = owner.get(f"{PATH}/confirm", params=fields).text

    response = send(owner, fields, reason="better in shadow")

    found = open_one(owner)
    assert "2 becomes the canary against 1, the active version." in page
    assert "2.5 % of users get it" in page
    assert response.headers["location"] == f"/console/strategies/ppo_gold/rollouts/{found.id}"
    assert (found.version, found.plan["stages"][0]["percent"]) == ("2", 2.5)
    assert found.plan["stages"][0]["minimum_time"] == 3 * 86_400
    assert "win_rate" not in [gate["kind"] for gate in found.plan["gates"]]


def test_a_start_says_the_share_that_it_serves_under_its_cap(owner: Browser) -> None:
    users = [f"user_{n}" for n in range(1_000)]
    load_users(owner.api.engine, [(user, 3.0 if bucket_of(user) < 500 else 1.0) for user in users], now=MONDAY)

    shown = owner.follow(send(owner, asked(), reason="better in shadow")).text

    with reading(owner.api.engine) as session:
        served = rollouts.get_canary(session, "ppo_gold").rollout_percent
    assert served < 5
    assert f"ppo_gold 2 has started at {served:g} % (asked 5 %: capital) of users" in shown


def test_a_start_that_comes_too_late_is_refused_with_its_reason(owner: Browser) -> None:
    page = owner.get(f"{PATH}/confirm", params=asked())
    fields = hidden_fields(page.text)
    owner.post("/strategies/ppo_gold/versions/3/retire", reason="not needed")

    response = owner.send(f"{PATH}/confirm?{page.request.url.query.decode()}", fields | {"reason": MARKUP})

    assert response.status_code == 409
    assert "&lt;img src=x" in response.text
    assert open_one(owner) is None


def test_a_form_that_was_sent_twice_starts_once(owner: Browser) -> None:
    page = owner.get(f"{PATH}/confirm", params=asked())
    path, fields = f"{PATH}/confirm?{page.request.url.query.decode()}", hidden_fields(page.text)

    first, second = owner.send(path, fields), owner.send(path, fields)

    assert (first.status_code, second.status_code) == (303, 303)
    assert len(queries.all_rollouts(owner.api.engine, "ppo_gold")) == 1


def test_a_version_that_harmed_in_shadow_starts_with_a_reason_only(api: Api) -> None:
    put_pair(api.engine)
    for number in range(9):  # too few for the trials of the preview, which take seconds
        put_day(
            api.engine, MONDAY + number * DAY, {"1": "buy", "2": "buy"}, {"1": 1.0, "2": -1.0}, signal_hours=range(8)
        )
    api.clock.now = MONDAY + 13 * DAY
    path, owner = "/strategies/fib_rsi/start/confirm", Browser(api).log_in(token(now=api.clock.now))
    page = owner.get(path, params=asked())

    address = f"{path}?{page.request.url.query.decode()}"
    refused = owner.send(address, hidden_fields(page.text) | {"reason": "try it"})
    started = owner.send(address, hidden_fields(refused.text) | {"override_reason": "the feed was wrong"})

    assert "What to expect: refused: in shadow the canary earns less" in page.text
    assert 'name="override_reason"' in page.text
    assert (refused.status_code, started.status_code) == (409, 303)
    assert "try it</textarea>" in refused.text


def test_a_plan_of_the_policy_fills_the_form_and_may_start(owner: Browser) -> None:
    window = ReleaseWindow(days=("mon",), opens="09:00", closes="10:00")
    careful = Plan().model_copy(update={"bake": timedelta(days=30), "advance_windows": (window,)})
    policy = Policy(plans={"careful": careful})
    set_policy(owner.api.engine, Command(OWNER, NOW), strategy_name="ppo_gold", policy=policy)

    form = owner.get(f"{PATH}?plan=careful&version=2").text
    standard = send(owner, asked())
    named = send(owner, {"version": "2", **fields_of(careful)})

    assert 'name="bake" value="30"' in form
    assert 'name="window-0-opens" value="09:00"' in form
    assert standard.status_code == 409
    assert "allows these plans only: careful" in standard.text
    assert 'name="override_reason"' in standard.text
    assert named.status_code == 303


# A start at a later time

LATER = "2026-03-12T09:00Z"


def test_a_start_is_scheduled_and_cancelled_from_the_pages(owner: Browser) -> None:
    preview = owner.get(f"{PATH}/preview", params=asked(start_at=LATER)).text
    confirm = owner.get(f"{PATH}/confirm", params=asked(start_at=LATER)).text
    response = send(owner, asked(start_at=LATER), reason="after the holidays")
    (start,) = list_starts(owner.api.engine)
    shown, form = owner.follow(response).text, owner.get(PATH).text
    cancelled = owner.follow(owner.post(f"/calendar/starts/{start.id}/cancel", reason="not yet")).text

    assert "It starts at 2026-03-12 09:00 UTC, in" in preview
    assert "Nothing changes now: 2 stays in shadow until 2026-03-12 09:00 UTC" in confirm
    assert ">Schedule the start</button>" in confirm
    assert (start.version, f"{start.start_at:%Y-%m-%d %H:%M}") == ("2", "2026-03-12 09:00")
    assert "ppo_gold 2 is scheduled to start at 2026-03-12 09:00 UTC." in shown
    assert "scheduled by ana: after the holidays" in shown
    assert "A start is scheduled already." in form
    assert f"/console/calendar/starts/{start.id}/cancel" in form
    assert "is cancelled" in cancelled
    assert open_one(owner) is None


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("soon", "2026-01-31, or 2026-01-31T12:00Z"),
        ("2020-01-01", "allowed: a time within the next 366 days."),
        ("2029-01-01", "allowed: a time within the next 366 days."),
        ("2026-03-12T09:00", "time zone"),
    ],
)
@pytest.mark.parametrize("step", ["preview", "confirm"])
def test_a_wrong_time_of_the_start_is_shown_again_with_its_reason(
    browser: Browser, step: str, text: str, problem: str
) -> None:
    response = browser.get(f"{PATH}/{step}", params=asked(start_at=text, bake="9"))

    assert response.status_code == 422
    assert f'name="start_at" value="{text}"' in response.text
    assert problem in response.text.partition('id="p-start_at"')[2].partition("</p>")[0]
    assert 'name="bake" value="9"' in response.text


def test_a_time_that_passes_before_the_form_is_sent_starts_nothing(owner: Browser) -> None:
    page = owner.get(f"{PATH}/confirm", params=asked(start_at=LATER))
    owner.api.clock.now += 30 * DAY
    late = Browser(owner.api).log_in(token(now=owner.api.clock.now))
    fields = hidden_fields(late.get().text) | {"once": hidden_fields(page.text)["once"]}

    response = late.send(f"{PATH}/confirm?{page.request.url.query.decode()}", fields)

    assert response.status_code == 422
    assert list_starts(owner.api.engine) == []
    assert open_one(owner) is None


def test_the_form_warns_of_a_freeze_at_its_time_and_of_a_version_that_was_rolled_back(owner: Browser) -> None:
    engine, command = owner.api.engine, Command(OWNER, NOW, "odd fills")
    start_rollout(engine, command, strategy_name="ppo_gold", version="2", plan=Plan())
    roll_back(engine, command, strategy_name="ppo_gold")
    set_freeze(engine, command, strategy_name="ppo_gold", starts_at=NOW + 2 * DAY, ends_at=NOW + 20 * DAY)

    form = owner.get(f"{PATH}?version=2").text
    preview = owner.get(f"{PATH}/preview", params=asked(start_at=LATER)).text
    region = preview.partition('id="preview"')[2]
    at_once = owner.get(f"{PATH}/preview", params=asked()).text

    assert "2 (shadow, was rolled back)" in form
    assert "2 was rolled back at" in form
    assert "At its time it would wait: frozen until" in region
    assert "2 was rolled back at" in region
    assert "look closely" in region
    assert "would wait" not in at_once


@pytest.mark.parametrize("risk_scale", [True, False])
def test_a_form_turns_the_risk_scale_on_and_off(risk_scale: bool) -> None:
    plan = Plan().model_copy(update={"risk_scale": risk_scale, "open_risk_percent": 12.5})

    assert read_fields(whole_form(fields_of(plan))).plan == plan
    assert fields_of(plan)["risk_scale"] == ("on" if risk_scale else "off")
