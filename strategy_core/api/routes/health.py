"""Whether the API can work, and numbers for a Prometheus."""

from fastapi import APIRouter, Request, Response

from strategy_core.api.dependencies import Backend, Requested
from strategy_core.api.routes import PREFIX, guarded
from strategy_core.api.schemas import ResponseModel
from strategy_core.observe.metrics import OPENMETRICS, TEXT, exposition, wanted
from strategy_core.services.database import check_schema

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


@_guarded.get("/metrics", response_class=Response, responses={200: {"content": {TEXT: {}, OPENMETRICS: {}}}})
def metrics(ask: Requested, request: Request) -> Response:
    """Return what stands in the database as Prometheus has it; as OpenMetrics, if `Accept` names that."""
    media_type = wanted(request.headers.get("accept", ""))
    found = exposition(ask.engine, ask.lists().names, now=ask.now, media_type=media_type)
    return Response(found, media_type=media_type)


router.include_router(_open)
router.include_router(_guarded)
