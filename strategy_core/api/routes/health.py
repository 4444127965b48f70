"""Whether the API can work, and numbers for a Prometheus."""

from fastapi import APIRouter, Request, Response

from strategy_core.api.dependencies import Backend, Requested
from strategy_core.api.routes import PREFIX, guarded
from strategy_core.api.schemas import ResponseModel
from strategy_core.observe.metrics import OPENMETRICS, PLAIN_TEXT, exposition
from strategy_core.store.engine import check_schema

router = APIRouter()
_open = APIRouter(prefix=PREFIX, tags=["health"])
_guarded = guarded("health")


class Health(ResponseModel):
    status: str


@_open.get("/healthz")
def health(request: Request) -> Health:
    """Say whether the database can be had and is of this release's schema; needs no token."""
    backend: Backend = request.app.state.backend
    check_schema(backend.engine)
    return Health(status="ok")


@_guarded.get("/metrics", response_class=Response, responses={200: {"content": {PLAIN_TEXT: {}, OPENMETRICS: {}}}})
def metrics(ask: Requested, request: Request) -> Response:
    """Return what stands in the database as Prometheus has it; as OpenMetrics, if `Accept` names that."""
    accept = request.headers.get("accept", "")
    body, content_type = exposition(ask.engine, ask.lists().names, now=ask.now, accept=accept)
    return Response(body, media_type=content_type)


router.include_router(_open)
router.include_router(_guarded)
