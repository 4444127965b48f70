"""Settings, database and clock of a flow run, and the decorators that end it with one line."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache, wraps
from inspect import signature
from typing import Any, ParamSpec

from prefect import Flow, flow
from prefect.client.schemas.objects import FlowRun, State
from prefect.context import FlowRunContext
from prefect.runtime import flow_run
from prefect.states import Completed, Failed
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from flows.artifacts import show_change
from strategy_core.domain.audit import FORM, RAMP, SIGNED_IN, UNVERIFIED_FORM, Actor
from strategy_core.domain.errors import AlreadyDone, InvalidSetting, RolloutError, reason_of
from strategy_core.market.source import CandleSource
from strategy_core.observe import configure_logs
from strategy_core.services.database import check_schema, failure
from strategy_core.services.owner_requests import Request
from strategy_core.settings import Settings, least_settings, read_settings

P = ParamSpec("P")
DONE_BEFORE = "done before, by the first start of this run"
INTERRUPTED = "Interrupted"  # name of the final state of a run that the database interrupted
_engines: dict[str, Engine] = {}  # by address
_taken_over: ContextVar[Request | None] = ContextVar("taken_over", default=None)


@dataclass(frozen=True, slots=True)
class Runtime:
    """Settings with the clock of the database, the open database, and the start time of the run.

    Attributes:
        wrong: the first invalid setting, if any, and a clock that disagrees or stands still. Invalid settings have
            their default values.
    """

    settings: Settings
    engine: Engine
    now: datetime
    wrong: tuple[str, ...] = ()

    def candles(self) -> CandleSource:
        return self.settings.open_candles(self.now)

    def candles_if_any(self) -> CandleSource:
        return self.settings.candles_if_any(self.now)


def engine_of(settings: Settings) -> Engine:
    """Return the engine of the database, one in a process: a new one would compile every statement again."""
    if settings.database_url not in _engines:
        _engines[settings.database_url] = settings.open_engine()
    return _engines[settings.database_url]


@contextmanager
def open_runtime(*, tolerate_bad_settings: bool = False) -> Iterator[Runtime]:
    """Open what the settings in the environment name.

    Args:
        tolerate_bad_settings: use defaults for invalid settings. A rollback must work in spite of them.

    Raises:
        SchemaOutdated: the database schema is not up to date.
    """
    configure_logs()
    wrong: tuple[str, ...] = ()
    try:
        settings = read_settings()
    except InvalidSetting as error:
        if not tolerate_bad_settings:
            raise
        settings, wrong = least_settings(), (str(error),)
    engine = engine_of(settings)
    try:
        check_schema(engine)
        read = settings.on_any_clock_of if tolerate_bad_settings else settings.on_clock_of
        settings = read(engine)
        wrong += tuple(each for each in (settings.clock_check.problem, settings.clock_note) if each)
        yield Runtime(settings, engine, settings.now(), wrong)
    finally:
        engine.dispose()


@contextmanager
def taken_over(request: Request) -> Iterator[None]:
    """Let a flow's function that is called without Prefect act as the run of *request*."""
    begun = _taken_over.set(request)
    try:
        yield
    finally:
        _taken_over.reset(begun)


def owned_by(owner: str) -> Actor:
    """Return the owner of a form: who is signed in, or without that knowledge the name in the form, unverified.

    The id of the run is the idempotency key: a run that is repeated changes nothing a second time.
    """
    run = _run()
    name = signed_in(FlowRunContext.get())
    return Actor(name or owner, source=FORM if name else UNVERIFIED_FORM, request_id=run, idempotency_key=run or None)


def signed_in(context: FlowRunContext | None) -> str:
    """Return the name of the owner whom the server knows, or an empty text."""
    request = _taken_over.get()
    if request is not None:
        return request.signed_in
    return creator_of(context.flow_run) if context is not None and context.flow_run is not None else ""


def creator_of(run: FlowRun) -> str:
    """Return the name of the signed-in owner who created *run*, or an empty text."""
    creator = run.created_by
    return creator.display_value or "" if creator is not None and creator.type == SIGNED_IN else ""


def unattended() -> Actor:
    """Return the actor of a scheduled tick."""
    return replace(RAMP, request_id=_run())


def _run() -> str:
    """Return the id of the flow run, or an empty text outside a run. Makes no request."""
    request = _taken_over.get()
    return str(request.id if request is not None else flow_run.id or "")


def one_line(work: Callable[P, str]) -> Callable[P, State[Any]]:
    """End the run as Completed with the line that *work* returns, or as Failed with the line of its error.

    Afterwards an artifact shows what the run changed.
    """

    @wraps(work)
    def run(*args: P.args, **kwargs: P.kwargs) -> State[Any]:
        try:
            line = work(*args, **kwargs)
        except AlreadyDone as error:
            if error.idempotency_key != _run():
                return Failed(message=str(error))
            line = DONE_BEFORE
        except RolloutError as error:
            return Failed(message=reason_of(error))
        except DBAPIError as error:
            return Failed(message=failure(error), name=INTERRUPTED)
        show_change(signature(work).bind(*args, **kwargs).arguments.get("strategy_name"))
        return Completed(message=line)

    return run


def owner_flow(run_name: str) -> Callable[[Callable[P, str]], Flow[P, State[Any]]]:
    """Make a flow with a form. Its text and the descriptions of its fields come from the docstring of *work*.

    Below the text are links to Prefect's list of artifacts, which is in no menu, and to the console. They are made when
    the flow is deployed, from the settings there.
    """

    def wrap(work: Callable[P, str]) -> Flow[P, State[Any]]:
        prose = (inspect.getdoc(work) or "").partition("\n\nArgs:")[0]
        return flow(flow_run_name=run_name, description=f"{prose}\n\n{_page_links()}")(one_line(work))

    return wrap


@cache
def _page_links() -> str:
    """Return links that work on the page of a deployment and of a flow, in both of Prefect's user interfaces."""
    console = least_settings().links().console
    return " · ".join(["[Reports](../../artifacts)", *([f"[Console]({console})"] if console else [])])
