"""Service tokens: the documented command makes one that rolls back, and nothing but a revocation ends it."""

import shlex
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from threading import Event

import pytest
import structlog
from fastapi.testclient import TestClient
from sqlalchemy import Engine

from strategy_core.api.app import create_app
from strategy_core.api.auth import Authenticator, Failures, Revocations, issue_token
from strategy_core.api.settings import ApiSettings
from strategy_core.cli import main
from strategy_core.domain.audit import Command
from strategy_core.domain.errors import InvalidToken
from strategy_core.services.tokens import is_revoked, list_tokens, record_token, revoke_token
from tests.alertmanager import alarm, notified
from tests.api.asking import SAMPLES, Api, World
from tests.api.doors import HOME, door
from tests.api.every import GUARDED, ROLLBACKS, each, refused
from tests.api.signing import NOW, SECRET, token
from tests.builders import OWNER
from tests.docs.pages import ROOT, blocks

YEAR = timedelta(days=365)
SERVICE = token(rollout_service=True, jti="t-1")


def api_that_asks(
    engine: Engine, lookup: Callable[[str], bool], *, now: datetime | None = None, within_s: float = 60.0
) -> Api:
    """Return the API on *engine*, which finds out by *lookup* whether a service token is revoked."""
    api = Api(engine)
    settings = ApiSettings.model_validate({"secret": SECRET})
    revocations = Revocations(lookup, within_s=within_s)
    authenticator = Authenticator(
        settings, settings.open_keys(), Failures(), lambda: now or datetime.now(UTC), revocations=revocations
    )
    app = create_app(engine, api.settings, authenticator, clock=api.clock)
    api.client = TestClient(app, raise_server_exceptions=False)
    return api


def test_the_documented_command_makes_a_token_with_which_alertmanagers_webhook_rolls_back(
    engine: Engine, database_url: str, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = ROOT / "docs" / "how-to" / "roll-back-from-alertmanager.md"
    (command,) = [
        line for block in blocks(page) for line in block.text.splitlines() if line.startswith("uv run rollout token")
    ]
    for name, value in {"DATABASE_URL": database_url, "API_SECRET": SECRET}.items():
        monkeypatch.setenv(f"ROLLOUT_{name}", value)
    monkeypatch.chdir(tmp_path)
    api = api_that_asks(engine, partial(is_revoked, engine))

    code = main(shlex.split(command)[3:])
    structlog.reset_defaults()  # the command has set them

    assert code == 0
    held = (tmp_path / "rollout.token").read_text().strip()
    assert (tmp_path / "rollout.token").stat().st_mode & 0o777 == 0o600
    answer = api.post("/alertmanager", notified(alarm("fib_rsi")), held=held)
    assert answer.status_code == 200, answer.text
    assert [each["outcome"] for each in answer.json()["alerts"]] == ["rolled_back"]
    (listed,) = list_tokens(engine)
    assert (listed.name, listed.expires_at - listed.issued_at) == ("alertmanager", YEAR)


def test_a_revoked_token_is_refused_at_the_next_request(engine: Engine, world: World) -> None:
    held, claims = issue_token(ApiSettings.model_validate({"secret": SECRET}), name="router", days=365, now=NOW)
    record_token(
        engine,
        Command(OWNER, NOW),
        token_id=claims["jti"],
        name="router",
        role="owner",
        strategies=(),
        read_only=False,
        issued_at=NOW,
        expires_at=NOW + YEAR,
    )
    api = api_that_asks(engine, partial(is_revoked, engine), now=NOW)
    before = api.get("/versions", held=held)

    revoke_token(engine, Command(OWNER, NOW, "replaced"), claims["jti"], at=NOW)

    assert before.status_code == 200
    problem = refused(api.get("/versions", held=held), 401)
    assert problem["detail"] == "the token is not accepted: it was revoked"
    refused(api.post("/rollback", {"strategy_name": "fib_rsi", "reason": "no"}, held=held), 401)


@each(GUARDED)
def test_while_revoked_tokens_cannot_be_looked_up_a_service_token_rolls_back_and_does_nothing_else(
    engine: Engine, world: World, name: str
) -> None:
    def gone(_: str) -> bool:
        raise OSError("the database does not answer")

    answer = SAMPLES[name].send(api_that_asks(engine, gone, now=NOW), world, held=SERVICE)

    if name in ROLLBACKS:
        assert answer.status_code == SAMPLES[name].status, answer.text
    else:
        assert refused(answer, 503)["type"] == "/problems/revocations-unavailable"


def test_a_look_up_that_hangs_holds_up_no_rollback(engine: Engine, world: World) -> None:
    hangs = Event()
    api = api_that_asks(engine, lambda _: hangs.wait(), now=NOW, within_s=0.01)

    answers = [SAMPLES["roll_back_strategy"].send(api, world, held=SERVICE).status_code for _ in range(6)]

    hangs.set()
    assert answers == [200] * 6  # five of them find it rolled back already


def test_other_tokens_are_not_looked_up() -> None:
    def asked(_: str) -> bool:
        raise AssertionError("asked")

    entrance = door(revocations=Revocations(asked))

    assert not entrance.authenticate(f"Bearer {token(jti='t-1')}", HOME).revocation_unknown
    assert not entrance.authenticate(f"Bearer {token(rollout_service=False)}", HOME).revocation_unknown


@pytest.mark.parametrize(
    ("held", "why"),
    [
        (token(rollout_service=True), "it is a service token without an id (jti)"),
        (token(rollout_service="yes", jti="t-1"), "its rollout_service is not true or false"),
        (token(rollout_service=1, jti="t-1"), "its rollout_service is not true or false"),
    ],
)
def test_a_service_token_that_could_not_be_revoked_is_refused(held: str, why: str) -> None:
    with pytest.raises(InvalidToken) as no:
        door().authenticate(f"Bearer {held}", HOME)

    assert no.value.why == why
