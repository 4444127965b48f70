"""Health check and Prometheus metrics."""

from fastapi import APIRouter, Request, Response
from pydantic import Field

from strategy_core.api.dependencies import Backend, Requested
from strategy_core.api.routes import PREFIX, guarded_router
from strategy_core.api.schemas import ResponseModel
from strategy_core.isolation.sandbox import available
from strategy_core.observe.metrics import OPENMETRICS, PLAIN_TEXT, exposition
from strategy_core.services.database import check_schema

router = APIRouter()
_open = APIRouter(prefix=PREFIX, tags=["health"])
_guarded = guarded_router("health")


class Health(ResponseModel):
    """The API is healthy."""

    status: str = Field(description="Always `ok`.")
    isolation: str = Field(
        description="Isolation of versions that run on this machine: `namespaces`, `landlock`, `sidecar` or `none`."
    )


@_open.get("/healthz", summary="Check the API's health")
def health(request: Request) -> Health:
    """Check that the database is available and has this release's schema. Needs no token."""
    backend: Backend = request.app.state.backend
    check_schema(backend.engine)
    return Health(status="ok", isolation=available().level)


@_guarded.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {PLAIN_TEXT: {}, OPENMETRICS: {}}}},
    summary="Return metrics for Prometheus",
)
def metrics(context: Requested, request: Request) -> Response:
    """Return metrics of the strategies that the token covers, as Prometheus text, or as OpenMetrics on request."""
    accept = request.headers.get("accept", "")
    body, content_type = exposition(
        context.engine, context.lists().names, now=context.now, accept=accept, isolation=available().level
    )
    return Response(body, media_type=content_type)


router.include_router(_open)
router.include_router(_guarded)
