"""What every flow opens, the owner's form, and the one line that ends a run."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from functools import wraps
from inspect import signature
from typing import Any, ParamSpec

from prefect import Flow, flow
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed, Failed
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from flows.artifacts import show_change
from strategy_core.domain.audit import RAMP, Actor
from strategy_core.domain.errors import InvalidSetting, RolloutError
from strategy_core.market.source import CandleSource
from strategy_core.observe import configure_logs
from strategy_core.services.database import check_schema, failure
from strategy_core.settings import Settings, least_settings, read_settings

P = ParamSpec("P")


@dataclass(frozen=True, slots=True)
class Runtime:
    """An open database, and the time at which the run began.

    Attributes:
        wrong: the first setting that is not valid, if one is; each such stands on its usual value.
    """

    settings: Settings
    engine: Engine
    now: datetime
    wrong: tuple[str, ...] = ()

    def candles(self) -> CandleSource:
        return self.settings.open_candles(self.now)

    def candles_if_any(self) -> CandleSource:
        return self.settings.candles_if_any(self.now)


@contextmanager
def open_runtime(*, database_alone: bool = False) -> Iterator[Runtime]:
    """Yield what the environment's settings name; a database that is not up to date raises SchemaOutdated.

    Args:
        database_alone: go on whatever other settings are not valid, as what takes users off a version must.
    """
    configure_logs()
    wrong: tuple[str, ...] = ()
    try:
        settings = read_settings()
    except InvalidSetting as error:
        if not database_alone:
            raise
        settings, wrong = least_settings(), (str(error),)
    engine = settings.open_engine()
    try:
        check_schema(engine)
        yield Runtime(settings, engine, settings.now(), wrong)
    finally:
        engine.dispose()


def owned_by(owner: str) -> Actor:
    return Actor(owner, role="owner", source="flow", request_id=_run())


def unattended() -> Actor:
    """Return the ramp as this run's actor: nobody asked for the tick but the schedule."""
    return replace(RAMP, request_id=_run())


def _run() -> str:
    """Return the flow run's id, under which Prefect keeps its logs; nothing outside a run. It asks no server."""
    return str(flow_run.id or "")


def one_line(work: Callable[P, str]) -> Callable[P, State[Any]]:
    """End the run as completed with the line that *work* returns, or as failed with what was refused: no traceback.

    What it has changed of the strategy that it was asked about is shown as an artifact, once it is done.
    """

    @wraps(work)
    def run(*args: P.args, **kwargs: P.kwargs) -> State[Any]:
        try:
            line = work(*args, **kwargs)
        except RolloutError as error:
            return Failed(message=str(error))
        except DBAPIError as error:
            return Failed(message=failure(error))
        show_change(signature(work).bind(*args, **kwargs).arguments.get("strategy_name"))
        return Completed(message=line)

    return run


def owner_flow(run_name: str) -> Callable[[Callable[P, str]], Flow[P, State[Any]]]:
    """Make a flow of *work*, described by what its docstring says before the arguments: these are described each."""

    def wrap(work: Callable[P, str]) -> Flow[P, State[Any]]:
        prose = (inspect.getdoc(work) or "").partition("\n\nArgs:")[0]
        return flow(flow_run_name=run_name, description=prose)(one_line(work))

    return wrap
