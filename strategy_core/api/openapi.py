"""The description of the API that code generators read: every status, one form of refusal, how to show a token."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from strategy_core.api.problems import MEDIA_TYPE
from strategy_core.api.routes import PREFIX
from strategy_core.api.schemas.shared import Problem

_ABOUT = """Replace a copied trading strategy by a better version of itself without hurting the users who copy it.

Every answer carries `X-Request-Id`, which may be given and stands in the audit trail. Answers about one strategy carry
its generation as `ETag`; a change with `If-Match` is refused with 412 once the strategy is of another one. A POST with
an `Idempotency-Key` may be sent again: it is answered again with `Idempotency-Replayed: true`, and is not done again.
A refusal changed nothing, and is not kept: under the same key it is tried anew. A rollback is never refused for being
late, nor for a key that came with another request before."""

_REFUSALS = {
    401: "No valid token.",
    403: "The token may not do this.",
    404: "What was named does not exist.",
    409: "It exists, but this is not allowed now; or it was done already.",
    412: "The strategy is of another generation than `If-Match` says.",
    413: "The body is too large.",
    415: "The body is not sent as application/json.",
    422: "The input is wrong; `errors` names the fields.",
    429: "Too many tokens of this client were not accepted.",
    503: "The database, or the feed, cannot be had now.",
}
_NO_TOKEN = ("/healthz",)
_NEVER_404 = ("/healthz", "/metrics", "/routing")


def describe(app: FastAPI) -> None:
    """Let *app* describe itself completely; the description is made once."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _completed(app)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _completed(app: FastAPI) -> dict[str, Any]:
    found = get_openapi(title=app.title, version=app.version, description=_ABOUT, routes=app.routes)
    parts = found.setdefault("components", {})
    schemas = parts.setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas.update(problem.pop("$defs"))
    schemas["Problem"] = problem
    parts["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}}
    for path, operations in found["paths"].items():
        short = path.removeprefix(PREFIX)
        for operation in operations.values():
            _complete(operation, short)
    return found


def _complete(operation: dict[str, Any], path: str) -> None:
    statuses = {503}
    if path not in _NO_TOKEN:
        operation["security"] = [{"bearer": []}]
        statuses |= {401, 403, 429}
    parameters = operation.get("parameters", [])
    if parameters or "requestBody" in operation:
        statuses.add(422)
    if path not in _NEVER_404:
        statuses.add(404)
    if "requestBody" in operation:
        statuses |= {409, 413, 415}
    if any(each["name"] == "If-Match" for each in parameters):
        statuses.add(412)
    answers = operation["responses"]
    for status in sorted(statuses):
        answers[str(status)] = {
            "description": _REFUSALS[status],
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
