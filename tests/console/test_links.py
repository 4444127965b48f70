"""Links between reports, Prefect's forms and the console, in a real browser and both of Prefect's user interfaces."""

import re
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from strategy_core.domain.links import Links
from strategy_core.store import rollouts
from strategy_core.store.engine import reading
from tests.console.conftest import Up

pytestmark = [
    pytest.mark.full,
    pytest.mark.xdist_group("console"),
    pytest.mark.parametrize("ui", ["", "/v2"], ids=["v1", "v2"]),
]
ODD = 'fib "<b>%41 50% &+#?/\\ü`|'
FIELDS = "[...document.querySelectorAll('input, textarea')].map(each => each.value)"


def test_a_report_leads_to_the_form_of_its_rollback_and_to_the_console(up: Up, page: Any, ui: str) -> None:
    artifact = up.wait_for(lambda: newest(up, "rollout-fib-rsi-v2"), "a tick shows how the rollout goes")
    with reading(up.engine) as session:
        (rollout,) = rollouts.list_rollouts(session, "fib_rsi")
    console = re.search(r"^console +(http\S+?)(?:/login#\S+)?(?:\s|$)", up.output.read_text(), re.MULTILINE)

    page.goto(f"{up.ui}{ui}/artifacts/artifact/{artifact}")
    address = target(page, "In the console")
    form = target(page, "Roll back")
    page.goto(form)

    assert form.startswith(f"{up.ui}{ui}/deployments/deployment/{up.deployment('rollback')}/run?")
    assert {"fib_rsi", "v2"} <= set(filled_in(page, "v2"))
    assert console is not None
    assert address == f"{console[1]}/strategies/fib_rsi/rollouts/{rollout.id}"


def test_a_form_is_filled_in_whatever_the_name(up: Up, page: Any, ui: str) -> None:
    form = f"{up.ui}{ui}/deployments/deployment/{up.deployment('rollback')}/run"

    page.goto(Links(forms={"rollback": form}).form("rollback", strategy_name=ODD, version="2+x"))

    assert {ODD, "2+x"} <= set(filled_in(page, "2+x"))


def test_a_form_leads_to_the_reports_and_a_run_to_its_own(up: Up, page: Any, ui: str) -> None:
    run = compared(up)
    page.goto(f"{up.ui}{ui}/deployments/deployment/{up.deployment('compare')}?tab=Description")
    reports = target(page, "Reports")
    page.goto(f"{up.ui}{ui}/runs/flow-run/{run}?tab=Logs")

    page.goto(target(page, f"{up.ui}/artifacts/key/comparison-seasonal-v2"))

    assert reports == f"{up.ui}{ui}/artifacts"
    page.get_by_text("Created comparison-seasonal-v2").first.wait_for()


def target(page: Any, words: str) -> str:
    """Return the full address of a link. The older interface opens it in a new tab."""
    found: str = page.get_by_role("link", name=words, exact=True).first.evaluate("each => each.href")
    return found


def filled_in(page: Any, text: str) -> list[str]:
    """Return the values of the form's fields, once one of them is *text*."""
    page.wait_for_function(f"text => {FIELDS}.includes(text)", arg=text)
    found: list[str] = page.evaluate(FIELDS)
    return found


def newest(up: Up, key: str) -> str | None:
    answer = asked(up, "artifacts/latest/filter", {"artifacts": {"key": {"any_": [key]}}})
    return answer[0]["latest_id"] if answer else None


def compared(up: Up) -> str:
    """Let an owner compare two versions, and return the id of the run."""
    given = {"parameters": {"strategy_name": "seasonal", "version": "v2"}, "state": {"type": "SCHEDULED"}}
    run = asked(up, f"deployments/{quote(up.deployment('compare'))}/create_flow_run", given)["id"]
    ended = {"flow_runs": {"id": {"any_": [run]}, "state": {"type": {"any_": ["COMPLETED"]}}}}
    up.wait_for(lambda: asked(up, "flow_runs/filter", ended) or None, "the comparison is made")
    return str(run)


def asked(up: Up, path: str, body: dict[str, Any]) -> Any:
    """Return what the server answers, once it has time."""

    def answer() -> Any:
        found = httpx.post(f"{up.ui}/api/{path}", json=body, timeout=60, headers=up.login)
        return None if found.status_code == httpx.codes.SERVICE_UNAVAILABLE else found.raise_for_status().json()

    return up.wait_for(answer, path)
