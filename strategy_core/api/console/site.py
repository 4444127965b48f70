"""The console's pages, put together: the login, the pages for owners, static files."""

from typing import Annotated

from fastapi import FastAPI, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import Response

from strategy_core.api.console import (
    alerts,
    audit,
    calendar,
    fleet,
    owner_reports,
    proposals,
    register,
    rollout,
    rollout_acts,
    start,
    strategy,
    toggles,
)
from strategy_core.api.console.page import asset_response, console_router, login_page, open_router, redirect
from strategy_core.api.console.session import (
    HOME,
    LONGEST_COOKIE,
    drop_token,
    keep_token,
    own_path,
)
from strategy_core.api.problems import status_of
from strategy_core.domain.errors import RolloutError

PAGES = (
    fleet,
    alerts,
    audit,
    calendar,
    rollout,
    rollout_acts,
    owner_reports,
    proposals,
    start,
    strategy,
    toggles,
    register,
)

_open = open_router()
_guarded = console_router()
_rest = console_router()


@_open.get("/login")
async def show_login(
    request: Request, following: Annotated[str, Query(alias="next", max_length=16_000)] = HOME
) -> Response:
    return login_page(request, following=following)


@_open.post("/login")
async def log_in(request: Request) -> Response:
    """Keep the token in a cookie. A wrong token is refused with the words of the API."""
    form, backend = request.state.form, request.app.state.backend
    token, following = form.get("token", "").strip(), own_path(form.get("next"))
    if len(token) > LONGEST_COOKIE:
        problem = f"The token is longer than {LONGEST_COOKIE:,} characters. Make one for fewer strategies."
        return login_page(request, status=422, problem=problem, following=following)
    client = request.client.host if request.client else ""
    try:
        await run_in_threadpool(backend.authenticator.authenticate, f"Bearer {token}", client)
    except RolloutError as error:
        return login_page(request, status=status_of(error), problem=str(error), following=following)
    response = redirect(following)
    keep_token(request, response, token, seconds=backend.authenticator.seconds_left(token))
    return response


@_open.get("/static/{_digest}/{name}")
async def show_asset(name: str) -> Response:
    return asset_response(name)


@_guarded.post("/logout")
def log_out(request: Request) -> Response:
    response = redirect(f"{HOME}/login")
    drop_token(request, response)
    return response


@_rest.get("/{path:path}")
@_rest.post("/{path:path}")
def show_nothing(path: str) -> Response:
    if not path:  # `/console/`, as one types it
        return redirect(HOME)
    raise HTTPException(404, f"the console has no page {HOME}/{path}")


def add_console(app: FastAPI) -> None:
    """Serve the console's pages from *app*."""
    app.include_router(_open)
    app.include_router(_guarded)
    app.include_router(rollout_acts.protecting)
    for page in PAGES:
        app.include_router(page.router)
    app.include_router(_rest)
