"""The console's page of proposals: what waits, and forms that approve and reject."""

from typing import Any

import pytest

from strategy_core.domain.audit import AGENT, Actor, Command
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.plan import read_plan
from strategy_core.services.proposals import Proposed, list_proposals, propose
from strategy_core.services.rollouts import start_rollout
from strategy_core.store import versions
from strategy_core.store.engine import reading
from tests.api.asking import PLAN, Api, World
from tests.api.browsing import Browser
from tests.api.signing import token
from tests.builders import MONDAY, OWNER

MARKUP = "<script>alert(1)</script> approve me"


@pytest.fixture
def browser(api: Api, world: World) -> Browser:
    return Browser(api).log_in()


def test_a_proposal_needs_an_owner_who_approves_it(browser: Browser, world: World) -> None:
    fleet = browser.get().text
    listed = browser.get("/proposals?strategy=ppo_gold").text
    asked = browser.get(f"/proposals/{world.proposal}/approve").text
    without = browser.post(f"/proposals/{world.proposal}/approve")
    done = browser.follow(browser.post(f"/proposals/{world.proposal}/approve", reason="agreed")).text

    assert '<a id="p-ppo_gold" href="/console/proposals?strategy=ppo_gold">' in fleet
    assert "Activate ppo_gold 2 for all users" in listed
    assert "In the assistant&#39;s words" in listed or "In the assistant's words" in listed
    assert "This is done now, in your name: activate ppo_gold 2 for all users" in asked
    assert without.status_code == 422
    assert "Done: activate ppo_gold 2 for all users." in done
    assert "No proposal waits." in done
    assert "an assistant's proposal" not in browser.get().text.lower()
    assert "approved by ana" in browser.get("/proposals?decided=1").text
    with reading(browser.api.engine) as session:
        assert versions.get_version(session, "ppo_gold", "2").status == Status.ACTIVE


def test_a_rejected_proposal_shows_why(browser: Browser, world: World) -> None:
    done = browser.follow(browser.post(f"/proposals/{world.proposal}/reject", reason="too early")).text

    assert "Rejected: activate ppo_gold 2 for all users." in done
    assert "too early" in browser.get("/proposals?decided=1").text
    again = browser.post(f"/proposals/{world.proposal}/approve", reason="after all")
    assert (again.status_code, "was rejected by ana" in again.text) == (409, True)


def test_another_person_must_approve(api: Api, world: World) -> None:
    own = Browser(api).log_in(token(sub="Assistant"))

    refused = own.post(f"/proposals/{world.proposal}/approve", reason="mine")

    assert refused.status_code == 403
    assert "another person must approve it" in refused.text
    assert "another person must approve it" in own.get("/proposals").text
    assert f"/proposals/{world.proposal}/approve" not in own.get("/proposals").text


def test_an_outdated_proposal_has_no_approval(browser: Browser, world: World) -> None:
    start: dict[str, Any] = {"strategy_name": "ppo_gold", "version": "3", "plan": read_plan(PLAN)}
    start_rollout(browser.api.engine, Command(OWNER, MONDAY), **start)

    page = browser.get("/proposals").text
    refused = browser.post(f"/proposals/{world.proposal}/approve", reason="agreed")

    assert "The strategy has changed since." in page
    assert f"/proposals/{world.proposal}/approve" not in page
    assert (refused.status_code, "changed meanwhile" in refused.text) == (409, True)


def test_markup_in_a_reason_is_text(browser: Browser) -> None:
    command = Command(Actor(MARKUP, role=AGENT), MONDAY, MARKUP)
    made = propose(browser.api.engine, command, strategy_name="fib_rsi", action=Proposed.ADVANCE)

    for path in ("/proposals", f"/proposals/{made.id}/approve", f"/proposals/{made.id}/reject", "/alerts"):
        page = browser.get(path).text
        assert MARKUP not in page
        assert "&lt;script&gt;" in page


@pytest.mark.parametrize(("held", "seen"), [("reader", True), ("other", False)])
def test_who_may_not_change_has_no_button_and_is_refused(api: Api, world: World, held: str, seen: bool) -> None:
    limited = Browser(api).log_in(held)

    page = limited.get("/proposals").text
    refused = [limited.get(f"/proposals/{world.proposal}/{word}").status_code for word in ("approve", "reject")]

    assert ("Activate ppo_gold" in page) is seen
    assert "/approve" not in page
    assert refused == [403, 403]
    assert len(list_proposals(api.engine)) == 1
