"""Pages: guarded routes, the visit that a page works with, rendering, and acts that are confirmed first."""

import json
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from hashlib import sha256
from pathlib import Path
from threading import BoundedSemaphore
from typing import Annotated, Any, Literal
from uuid import uuid4

import structlog
from anyio import from_thread
from fastapi import APIRouter, Depends
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as NoConnection
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from strategy_core.api.auth import Principal
from strategy_core.api.console import words
from strategy_core.api.console.session import (
    HOME,
    LOGIN,
    NO_FORM,
    SentForm,
    check_form_secret,
    check_origin,
    drop_note,
    drop_token,
    form_secret,
    keep_note,
    login_path,
    own_path,
    read_form,
    take_note,
    token_of,
)
from strategy_core.api.dependencies import RequestContext
from strategy_core.api.problems import answer_to, unexpected
from strategy_core.api.requests import LARGEST_NUMBER, BadBody, bounded, read_body
from strategy_core.domain.errors import AlreadyDone, Forbidden, InvalidName, InvalidToken, RolloutError
from strategy_core.domain.gates.base import format_duration, format_r
from strategy_core.services.queries import change_under_key

SECURITY = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    "Referrer-Policy": "same-origin",  # with no-referrer, browsers send forms with `Origin: null`
    "Cross-Origin-Opener-Policy": "same-origin",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-store",
}
FOLDER = Path(__file__).parent
LONGEST_REASON = 1_000  # characters, as in the API
BUSY_RETRY_S = 2  # after a page that was refused
ASSETS = {"console.css": "text/css", "console.js": "text/javascript", "icon.svg": "image/svg+xml"}
NAVIGATION = (
    ("Fleet", HOME),
    ("Alerts", f"{HOME}/alerts"),
    ("Audit", f"{HOME}/audit"),
    ("Calendar", f"{HOME}/calendar"),
    ("Proposals", f"{HOME}/proposals"),
)

SENT_TWICE = "This was done already, the page shows the present state"

log = structlog.get_logger(__name__)

Handler = Callable[[Request], Coroutine[Any, Any, Response]]
_EXPLAINED = (RolloutError, RequestValidationError, HTTPException, DBAPIError, NoConnection)


# Rendering


@cache
def _asset(name: str) -> bytes:
    return (FOLDER / "static" / name).read_bytes()


def asset_path(name: str) -> str:
    """Return the address of a static file. It changes with the file, so that browsers may keep it."""
    return f"{HOME}/static/{sha256(_asset(name)).hexdigest()[:12]}/{name}"


def asset_response(name: str) -> Response:
    """Return a static file. Raises HTTPException 404 if there is none of this name."""
    if name not in ASSETS:
        raise HTTPException(404, "no such file")
    headers = {**SECURITY, "Cache-Control": "public, max-age=31536000, immutable"}
    return Response(_asset(name), media_type=ASSETS[name], headers=headers)


@cache
def _templates() -> Environment:
    made = Environment(
        loader=FileSystemLoader(FOLDER / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = (words.count, words.percent, words.plural, words.sentence, words.stamp, format_duration, format_r)
    for each in filters:
        made.filters[each.__name__] = each
    made.globals["asset"] = asset_path
    return made


def render(request: Request, template: str, status: int = 200, **values: Any) -> Response:
    """Return a page. Works before login too. *values* are the names that the template uses.

    `csrf`, `me` (the Principal, or None), `now`, `note`, `market_time`, `navigation` and `here` are added.
    """
    principal: Principal | None = getattr(request.state, "principal", None)
    token, backend = token_of(request), request.app.state.backend
    now: datetime = getattr(request.state, "now", None) or backend.clock()
    note = take_note(request, token) if token and principal else ""
    shown = {
        "me": principal,
        "csrf": form_secret(token) if token and principal else "",
        "now": now,
        "note": note,
        "market_time": now if backend.settings.replay_from is not None else None,
        "navigation": NAVIGATION,
        "here": request.url.path,
        "ago": lambda moment: words.ago(moment, now),
        "once": lambda: uuid4().hex,
    }
    body = _templates().get_template(template).render(shown | values)
    etag = f'"{sha256(body.encode()).hexdigest()[:32]}"'
    headers = {**SECURITY, "ETag": etag}
    if status == 200 and request.method == "GET" and request.headers.get("if-none-match") == etag:
        return Response(status_code=304, headers=headers)
    response = HTMLResponse(body, status, headers=headers)
    if note:
        drop_note(request, response)
    return response


def redirect(path: str) -> Response:
    """Send the browser to *path* of the console, with GET."""
    return RedirectResponse(own_path(path), 303, headers=SECURITY)


# Guarded routes


class ConsoleRoute(APIRoute):
    """A page that needs a login. Errors become pages.

    At most PAGES_AT_ONCE pages are in progress, so that they leave the threads of the server to acts. Others get the
    page `busy.html`, which takes no thread. Forms that were sent are not limited.
    """

    needs_login = True
    is_limited = True

    def get_route_handler(self) -> Handler:
        handler = super().get_route_handler()

        async def shown(request: Request) -> Response:
            if not self.is_limited or request.method != "GET":
                return await answered(request)
            pages: BoundedSemaphore = request.app.state.backend.pages
            if not pages.acquire(blocking=False):
                return busy_page()
            try:
                return await answered(request)
            finally:
                pages.release()

        async def answered(request: Request) -> Response:
            request.state.form, request.state.slot = NO_FORM, None
            try:
                return await _handle(request, handler, needs_login=self.needs_login)
            except Exception as error:  # noqa: BLE001  an owner gets a page in any case
                return await run_in_threadpool(_error_page, request, await _explain(request, error))
            finally:
                if request.state.slot is not None:
                    bulkhead, strategy_name = request.state.slot
                    bulkhead.release(strategy_name)

        return shown


class OpenConsoleRoute(ConsoleRoute):
    """A page without a login. It is not limited: an owner who must act may have to log in first."""

    needs_login = False
    is_limited = False


class ProtectingRoute(ConsoleRoute):
    """A page of an act that protects users. It is not limited."""

    is_limited = False


def console_router() -> APIRouter:
    """Return a router whose pages need a login. Paths are below `/console`."""
    return _router(ConsoleRoute)


def open_router() -> APIRouter:
    """Return a router whose pages need no login."""
    return _router(OpenConsoleRoute)


def protecting_router() -> APIRouter:
    """Return a router for acts that protect users, whose pages are shown however many others are in progress."""
    return _router(ProtectingRoute)


def _router(route: type[ConsoleRoute]) -> APIRouter:
    return APIRouter(prefix=HOME, route_class=route, include_in_schema=False, default_response_class=Response)


async def _handle(request: Request, handler: Handler, *, needs_login: bool) -> Response:
    backend, state = request.app.state.backend, request.state
    token = token_of(request)
    state.changed, state.reused_key, state.heavy, state.idempotency_key = [], None, False, None
    if needs_login:
        if token is None:
            return _ask_for_login(request)
        client = request.client.host if request.client else ""
        try:
            state.principal = await run_in_threadpool(backend.authenticator.authenticate, f"Bearer {token}", client)
        except InvalidToken as error:
            response = await run_in_threadpool(login_page, request, status=401, problem=str(error))
            drop_token(request, response)
            return response
        structlog.contextvars.bind_contextvars(actor=state.principal.name)
    state.now = backend.clock()
    if request.method != "GET":
        check_origin(request)
        request = bounded(request)
        body = await read_body(request, backend.body_timeout_s)
        state.form = await run_in_threadpool(read_form, request.headers.get("content-type", ""), body)
        if needs_login and token is not None:
            check_form_secret(token, state.form)
    return await handler(request)


def _ask_for_login(request: Request) -> Response:
    """Lead to the login. A link on another site does not send the cookie, so the page first loads itself once more."""
    if request.method == "GET" and request.headers.get("sec-fetch-site") == "cross-site":
        return render(request, "again.html", path=own_path(_path_and_query(request)))
    if request.method != "GET":
        return login_page(request, status=401, problem="You are not logged in. Log in, and do it again.")
    return RedirectResponse(login_path(request), 303, headers=SECURITY)


@cache
def _busy_body() -> bytes:
    return _templates().get_template("busy.html").render(retry_s=BUSY_RETRY_S).encode()


def busy_page() -> Response:
    """Return the page for a reader while too many pages are in progress. A browser opens it again by itself."""
    return HTMLResponse(_busy_body(), 503, headers={**SECURITY, "Retry-After": str(BUSY_RETRY_S)})


def login_page(request: Request, *, status: int = 200, problem: str = "", following: str = HOME) -> Response:
    """Return the login page. *following* is the page to show after the login."""
    return render(request, "login.html", status, problem=problem, following=own_path(following), action=LOGIN)


def _path_and_query(request: Request) -> str:
    return request.url.path + (f"?{request.url.query}" if request.url.query else "")


@dataclass(frozen=True, slots=True)
class Explained:
    """An error as a page shows it: *problems* are pairs of field and problem."""

    status: int
    title: str
    detail: str
    problems: Sequence[tuple[str, str]]
    headers: dict[str, str]


async def _explain(request: Request, error: Exception) -> Explained:
    """Return *error* with the status and the words of the API."""
    if isinstance(error, BadBody):
        return Explained(422, "Invalid form", str(error), [], {})
    try:
        answer = await answer_to(request, error)
    except Exception:  # whatever is raised has no problem document: the log has it, and the owner still gets a page
        log.exception("api.failed", method=request.method, path=request.url.path)
        answer = unexpected(request)
    document = json.loads(bytes(answer.body))
    errors = document.get("errors") or []
    return Explained(
        status=answer.status_code,
        title=document["title"],
        detail=document["detail"],
        problems=[(each["field"], each["problem"]) for each in errors if each["problem"] != document["detail"]],
        headers={name: answer.headers[name] for name in ("Retry-After", "Connection") if name in answer.headers},
    )


def _error_page(request: Request, found: Explained) -> Response:
    back = _page_before(request)
    response = render(request, "error.html", found.status, found=found, back=back)
    response.headers.update(found.headers)
    return response


def _page_before(request: Request) -> str:
    """Return the path of the console's page that the browser was on, for the link back."""
    before = request.headers.get("referer", "").partition("://")[2]
    path = own_path(before[before.find("/") :] if "/" in before else None)
    return HOME if path == request.url.path else path


# What a page works with


@dataclass(frozen=True, slots=True)
class FormField:
    """One field of a form, for the macro `field`.

    Attributes:
        name: of the field when it is sent.
        kind: `number` takes *minimum*, *maximum* and *step*. `choice` takes *options*: pairs of value and label.
        value: what it shows at first. A checkbox is `on` or empty.
        hint: a line of help below the label.
        unit: shown after the field, such as `%` or `days`.
        problem: why what was typed is refused.
    """

    name: str
    label: str
    kind: Literal["text", "number", "long", "choice", "checkbox"] = "text"
    value: str = ""
    hint: str = ""
    unit: str = ""
    required: bool = False
    options: Sequence[tuple[str, str]] = ()
    minimum: float | None = None
    maximum: float | None = None
    step: float | Literal["any"] | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class OwnerAct:
    """An act of an owner, as the page before it shows it.

    Attributes:
        title: what is done to what, such as `Pause fib_rsi 2.0.0`.
        effects: what it will do, to how many users: a sentence each.
        button: the word on the button.
        reason: whether the owner must give one.
        dangerous: it takes users off a version at once. The button is red.
        fields: further fields.
        generation: of the strategy, as shown. The act is refused if the strategy has changed since.
        notes: warnings, a sentence each.
        about: what the owner should know of the subject first, such as the text of an alert.
    """

    title: str
    effects: Sequence[str]
    button: str
    reason: Literal["required", "optional", "none"] = "optional"
    dangerous: bool = False
    fields: Sequence[FormField] = ()
    generation: int | None = None
    notes: Sequence[str] = ()
    about: str = ""


class Visit(RequestContext):
    """One request to a page by an owner who is logged in."""

    source = "console"

    def __init__(self, request: Request) -> None:
        super().__init__(request)
        self.request = request
        self.form: SentForm = request.state.form
        self.real_now = datetime.now(UTC)

    def render(self, template: str, status: int = 200, **values: Any) -> Response:
        """Return a page, see `render`. The template also gets `can_change`."""
        return render(self.request, template, status, can_change=self.can_change, **values)

    def can_change(self, strategy_name: str | None) -> bool:
        """Return whether the token may change this strategy, or all strategies if no name is given."""
        try:
            self.principal.check_change(strategy_name)
        except Forbidden:
            return False
        return not self.principal.revocation_unknown

    def reason(self, *, required: bool = False) -> str:
        """Return the reason in the form.

        Raises:
            InvalidName: it is missing and *required*, or too long.
        """
        given = self.form.get("reason", "").strip()
        if len(given) > LONGEST_REASON or (required and not given):
            allowed = f"a few words that explain why, at most {LONGEST_REASON:,} characters"
            raise InvalidName("reason", given[:40], allowed)
        return given

    def override_reason(self) -> str:
        """Return why a refusal is overridden, as in the form. Raise InvalidName if it is too long."""
        given = self.form.get("override_reason", "").strip()
        if len(given) > LONGEST_REASON:
            raise InvalidName("override_reason", given[:40], f"at most {LONGEST_REASON:,} characters")
        return given

    @property
    def generation(self) -> int | None:
        """The strategy's generation that the form was made for."""
        given = self.form.get("generation", "")
        return int(given) if given.isdecimal() and len(given) < 19 and int(given) <= LARGEST_NUMBER else None

    def done(self, line: str, path: str) -> Response:
        """Go to the page *path*, which shows *line* once."""
        response = redirect(path)
        token = token_of(self.request)
        assert token is not None
        keep_note(self.request, response, token, words.sentence(line))
        return response

    def act(
        self,
        describe: Callable[[], OwnerAct],
        perform: Callable[[SentForm], str],
        *,
        back: str,
        after: Callable[[], str] | None = None,
    ) -> Response:
        """Show what an act will do, or do it.

        Args:
            describe: returns what is shown. It is not called for an act that succeeds.
            perform: does it and returns a line for the owner.
            back: the page to return to.
            after: returns the page to go to when it is done. Default: *back*.
        """
        self.principal.check_changes()
        if self.request.method == "GET":
            return self._confirm(describe(), back)
        once = self.form.get("once", "")
        self._state.idempotency_key = once if 0 < len(once) <= 64 and once.isalnum() and once.isascii() else None
        try:
            line = perform(self.form)
        except AlreadyDone:
            line = SENT_TWICE
        except _EXPLAINED as error:
            if self._is_done():
                return self.done(SENT_TWICE, back)
            found = from_thread.run(_explain, self.request, error)
            try:
                asked = describe()
            except Exception:  # noqa: BLE001  the first refusal is the one to show
                raise error from None
            return self._confirm(_as_typed(asked, self.form, found.problems), back, found)
        return self.done(line, back if after is None else after())

    def _is_done(self) -> bool:
        """Return whether this form was sent before and did its act then."""
        key = self._state.idempotency_key
        if key is None:
            return False
        with suppress(DBAPIError, NoConnection):
            return change_under_key(self.engine, actor=self.principal.name, idempotency_key=key) is not None
        return False

    def _confirm(self, asked: OwnerAct, back: str, refused: Explained | None = None) -> Response:
        response = self.render(
            "act.html",
            200 if refused is None else refused.status,
            act=asked,
            back=own_path(back),
            refused=refused,
            reason=self.form.get("reason", ""),
            longest_reason=LONGEST_REASON,
        )
        if refused is not None:
            response.headers.update(refused.headers)
        return response


def _as_typed(asked: OwnerAct, form: SentForm, problems: Sequence[tuple[str, str]]) -> OwnerAct:
    wrong = dict(problems)
    fields = [replace(one, value=form.get(one.name, ""), problem=wrong.get(one.name, "")) for one in asked.fields]
    return replace(asked, fields=fields)


async def _visit(request: Request) -> Visit:
    return Visit(request)


Visited = Annotated[Visit, Depends(_visit)]
