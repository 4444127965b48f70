"""An owner's action as a form of the Prefect UI: its run's name, and what is said above its fields."""

import inspect
from collections.abc import Callable
from typing import Any, ParamSpec

from prefect import Flow, flow
from prefect.client.schemas.objects import State

from flows.runtime import one_line

P = ParamSpec("P")


def form(run_name: str) -> Callable[[Callable[P, str]], Flow[P, State[Any]]]:
    """Make a flow of *work*, described by what its docstring says before the arguments: these are described each."""

    def wrap(work: Callable[P, str]) -> Flow[P, State[Any]]:
        prose = (inspect.getdoc(work) or "").partition("\n\nArgs:")[0]
        return flow(flow_run_name=run_name, description=prose)(one_line(work))

    return wrap
