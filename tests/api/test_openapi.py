"""The description is true: whatever is asked by it, rightly or wrongly, is answered as it says."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from schemathesis import GenerationMode
from schemathesis.python import asgi
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from sqlalchemy import Engine

from strategy_core.api.routes.signals import LONGEST_WAIT_S
from strategy_core.store.engine import open_database
from tests.api.asking import HELD, SAMPLES, Api, World, put_world
from tests.effort import examples

CHECKS = [
    schemathesis.checks.not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
SLOW = {"register": examples(5)}  # each starts a process
USUALLY = examples(20)
NOTHING_WRONG = [(name, GenerationMode.NEGATIVE) for name in ("health", "metrics")]  # they take no input
TOKENS = {**HELD, "nobodys": "x.y.z"}
MOSTLY_OWNER = ["owner"] * 6 + ["other", "reader", "user", "nobodys"]


@pytest.fixture(scope="module")
def served(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Api, World]]:
    file = tmp_path_factory.mktemp("described") / "rollout.db"
    shutil.copy(sqlite_template, file)
    engine: Engine = open_database(f"sqlite:///{file}")
    world = put_world(engine)
    yield Api(engine), world
    engine.dispose()


@pytest.fixture(scope="module")
def schema(served: tuple[Api, World]) -> Any:
    return schemathesis.openapi.from_asgi("/openapi.json", served[0].app)


def meant(case: Any, world: World) -> None:
    """Let *case* be about what stands in the database."""
    known = {"version_id": world.ids["ppo_gold", "2"], "rollout_id": world.rollout, "alert_id": world.alert}
    for part in (case.path_parameters, case.query, case.body):
        if isinstance(part, dict):
            named = {"strategy_name": "ppo_gold", "version": "2", "shadow_version": "2"} | known
            part.update({name: value for name, value in named.items() if name in part})


def soon(case: Any) -> None:
    """Let a request for signals wait a moment at most."""
    if isinstance(case.query, dict) and isinstance(wait := case.query.get("wait"), int | float) and wait > 0:
        case.query["wait"] = min(wait, 0.1) if wait <= LONGEST_WAIT_S else wait


def described(part: Any, place: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each part of the description that has a default, with its place."""
    if isinstance(part, dict):
        if "default" in part and not isinstance(part["default"], dict):
            yield place, part
        for name, each in part.items():
            yield from described(each, f"{place}/{name}")
    elif isinstance(part, list):
        for number, each in enumerate(part):
            yield from described(each, f"{place}/{number}")


def test_a_default_is_what_its_own_schema_allows(served: tuple[Api, World]) -> None:
    """Code generators leave an endpoint out whose request has a default of another type."""
    found = served[0].app.openapi()

    wrong = [
        place
        for place, part in described(found)
        if not Draft202012Validator({**part, "components": found["components"]}).is_valid(part["default"])
    ]

    assert wrong == []
    assert len(list(described(found))) > 40


@pytest.mark.full
@pytest.mark.drawn
@pytest.mark.parametrize(
    ("name", "mode"),
    [(name, mode) for name in SAMPLES for mode in GenerationMode if (name, mode) not in NOTHING_WRONG],
)
def test_every_answer_is_as_described(served: tuple[Api, World], schema: Any, name: str, mode: GenerationMode) -> None:
    api, world = served
    operation = schema.find_operation_by_id(name)
    client = asgi.get_client(cast(Any, api.app))

    @settings(
        max_examples=SLOW.get(name, USUALLY),
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(
        case=operation.as_strategy(generation_mode=mode),
        about_what_stands=st.sampled_from([True, True, False]),
        held=st.sampled_from(MOSTLY_OWNER),
    )
    def ask(case: Any, about_what_stands: bool, held: str) -> None:
        if about_what_stands:
            meant(case, world)
        soon(case)
        headers = {"Authorization": f"Bearer {TOKENS[held]}"}
        answer = case.call(session=client, headers=headers)
        case.validate_response(answer, checks=CHECKS, headers=headers)

    ask()
