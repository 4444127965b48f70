"""`rollout clock`: run what is due on the Prefect server, without a new interpreter for what is frequent or urgent.

Scheduled flows of every minute and owners' changes run in threads of this process. Flows that read much run in
processes of their own. Without the Prefect server, the flows of every minute go on, and so do owners' requests that
were written down.
"""

import contextvars
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import structlog
from prefect import Flow
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.responses import FlowRunResponse, OrchestrationResult, SetStateStatus
from prefect.context import FlowRunContext, SyncClientContext
from prefect.events.schemas.events import Event, RelatedResource, Resource
from prefect.exceptions import Abort, ObjectNotFound, Pause
from prefect.flow_engine import run_flow
from prefect.results import get_result_store
from prefect.states import Cancelled, Completed, Crashed, Failed, Pending, Running
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from deployments.automations import HEARTBEAT_S
from flows.runtime import DONE_BEFORE, INTERRUPTED, creator_of, taken_over
from strategy_core.domain.errors import RolloutError, reason_of
from strategy_core.isolation.forkserver import fork_server
from strategy_core.services import owner_requests
from strategy_core.services.owner_requests import ALERT_AFTER, LEASE, Request
from strategy_core.services.rollback import never_locked_out
from strategy_core.settings import least_settings
from strategy_core.store.tables import OwnerRequest

POLL_S = 2.0
LOOK_S = 10.0  # for requests that nobody does, and for runs to cancel
ALONE_AFTER_S = 30.0  # without an answer of the server, the flows of every minute run without it
MINUTE_S = 60.0
UNSCHEDULED_S = 180.0  # without a run of a flow of every minute, its schedule is looked at
NO_HINDRANCE_S = 120.0  # a run that takes longer does not hold back the next run of its deployment
AT_ONCE = 3  # runs of one scheduled deployment, if each is such a hindrance
IN_PROCESSES = 3  # at once
STOP_WITHIN_S = 10.0
READS_MUCH = frozenset(
    {
        "nightly_comparison",
        "reports",
        "maintain_database",
        "verify_audit",
        "register_version",
        "replay",
        "whatif",
        "retrain",
        "compare",
        "plan",
    }
)
_SKIPPED = "Skipped"
_UNAVAILABLE = (
    DBAPIError,
    RolloutError,
    OSError,
)  # of the database. RolloutError: it is locked, or a commit unsure
_FORGOTTEN = timedelta(hours=1)  # a request that is older is not found on the server, only in the database

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Served:
    """A deployment and its flow.

    Attributes:
        every_s: seconds between its scheduled runs if it is due every minute or more often, otherwise None.
    """

    id: UUID
    name: str
    flow: Flow[..., Any]
    every_s: float | None = None

    @property
    def function(self) -> str:
        return str(self.flow.fn.__name__)

    @property
    def is_change(self) -> bool:
        """Whether an owner asks for it in a form that changes something."""
        return "owner" in self.flow.parameters.properties

    @property
    def in_process(self) -> bool:
        return self.function in READS_MUCH


@dataclass(slots=True)
class Working:
    served: Served
    since: float  # monotonic seconds
    thread: threading.Thread | None = None
    process: "subprocess.Popen[bytes] | None" = None


@dataclass(slots=True)
class Clock:
    """Starts due runs.

    Args:
        served: the deployments, by id.
        client: of the Prefect server, open as long as the clock is used.
        engine: of the platform's database.
        name: of this process, unique among all that work on the database.
    """

    served: Mapping[UUID, Served]
    client: SyncPrefectClient
    engine: Engine
    name: str
    _running: dict[UUID, Working] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _answered: float = field(default_factory=time.monotonic)
    _begun: dict[UUID, float] = field(default_factory=dict)  # deployment -> when its last run began
    _training: threading.Lock = field(default_factory=threading.Lock)
    _places: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(IN_PROCESSES))

    def run(self, stop: threading.Event, alive: Path | None = None) -> None:
        """Start runs until *stop* is set, then wait for them up to `STOP_WITHIN_S` and end the processes.

        Args:
            alive: a file to touch every few seconds.
        """
        look_at = 0.0
        while not stop.is_set():
            self.step()
            if alive is not None:
                alive.touch()
            if time.monotonic() >= look_at:
                look_at = time.monotonic() + self.look()
            stop.wait(POLL_S)
        self._stop()

    @property
    def busy(self) -> bool:
        """Whether a run works."""
        with self._lock:
            return bool(self._running)

    @property
    def processes(self) -> "list[subprocess.Popen[bytes]]":
        """The processes of runs that read much."""
        with self._lock:
            return [each.process for each in self._running.values() if each.process is not None]

    def step(self) -> None:
        """Start all runs that are due. Log an error of the server, and without it run the flows of every minute."""
        try:
            due = self.client.get_scheduled_flow_runs_for_deployments(
                list(self.served), scheduled_before=datetime.now(UTC)
            )
        except httpx.HTTPError as error:
            away_s = time.monotonic() - self._answered
            log.warning("clock.no_answer", error=type(error).__name__, seconds=round(away_s))
            if away_s > ALONE_AFTER_S:
                self._run_alone()
            return
        self._answered = time.monotonic()
        by_deployment: dict[UUID, list[FlowRunResponse]] = defaultdict(list)
        for run in due:
            if run.deployment_id and run.deployment_id in self.served and run.id not in self._running:
                by_deployment[run.deployment_id].append(run)
        # what owners ask for comes first
        for each in sorted(by_deployment, key=lambda key: self.served[key].every_s is not None):
            self._start_due(self.served[each], by_deployment[each])
        self._run_unscheduled()

    def _start_due(self, served: Served, due: Sequence[FlowRunResponse]) -> None:
        if served.every_s is None:
            for run in due:
                self._start(served, run)
            return
        newest = max(due, key=_due_at)
        if not self._hindered(served):
            self._start(served, newest)
        for run in due:
            if run.id != newest.id and run.parameters == newest.parameters:
                self._skip(run, newest)

    def _hindered(self, served: Served) -> bool:
        """Whether a run of this deployment still works, so that the next one waits."""
        with self._lock:
            since = [each.since for each in self._running.values() if each.served.id == served.id]
        return bool(since) and (len(since) >= AT_ONCE or time.monotonic() - max(since) < NO_HINDRANCE_S)

    def _skip(self, run: FlowRunResponse, newest: FlowRunResponse) -> None:
        line = f"Its minute has passed. The run of {_due_at(newest):%H:%M:%S} UTC does its work."
        done: State[Any] = Completed(name=_SKIPPED, message=line)
        with suppress(httpx.HTTPError, ObjectNotFound):
            self.client.set_flow_run_state(run.id, done, force=True)

    def _start(self, served: Served, run: FlowRunResponse) -> None:
        self._begun[served.id] = time.monotonic()
        self._begin(run.id, served, self._do)

    def _begin(self, key: UUID, served: Served, work: Callable[[Served, UUID, Working], None]) -> None:
        """Do *work* in a thread, which counts as running at once."""
        running = Working(served, time.monotonic())
        with self._lock:
            self._running[key] = running

        def run() -> None:
            try:
                work(served, key, running)
            finally:
                with self._lock:
                    self._running.pop(key, None)

        context = contextvars.copy_context()  # with the open client
        running.thread = threading.Thread(target=context.run, args=(run,), name=served.name, daemon=True)
        running.thread.start()

    def _do(self, served: Served, run_id: UUID, running: Working) -> None:
        try:
            if served.is_change:
                self._do_change(served, run_id, running)
            elif self._pending(run_id):
                self._execute(served, run_id, running)
        except (httpx.HTTPError, ObjectNotFound) as error:
            log.warning("clock.run_lost", flow=served.name, run=str(run_id), error=str(error))

    def _do_change(self, served: Served, run_id: UUID, running: Working) -> None:
        run = self.client.read_flow_run(run_id)
        request = Request(run_id, served.function, run.parameters, creator_of(run))
        if not self._taken(request):
            return
        if self._pending(run_id):
            state = self._execute(served, run_id, running)
            self._settle(request, state)

    def _taken(self, request: Request) -> bool:
        """Write the request down. A rollback goes on without; anything else stays scheduled and is tried again."""
        try:
            row = self._take(request)
        except _UNAVAILABLE as error:
            log.warning("clock.not_written_down", action=request.action, error=type(error).__name__)
            return request.action == "rollback"
        if row is not None and row.ended_at is not None:  # the server was away then, and still has the run as open
            self._report(request, Failed(message=row.line) if row.failed else Completed(message=row.line))
            return False
        return row is not None

    @never_locked_out(1.0)
    def _take(self, request: Request) -> OwnerRequest | None:
        return owner_requests.take(self.engine, request, by=self.name, now=datetime.now(UTC))

    def _report(self, request: Request, state: State[Any]) -> None:
        with suppress(httpx.HTTPError, ObjectNotFound):
            self.client.set_flow_run_state(request.id, state, force=True)

    def _settle(self, request: Request, state: State[Any] | None) -> bool:
        """Store how a request ended, if it has. One that the database interrupted stays open and is taken over."""
        if state is None or state.name == INTERRUPTED or not state.is_final() or state.is_crashed():
            return False
        with suppress(*_UNAVAILABLE):
            owner_requests.end(
                self.engine,
                request.id,
                state.message or "",
                failed=not state.is_completed(),
                now=datetime.now(UTC),
            )
        return True

    def _pending(self, run_id: UUID) -> bool:
        """Claim the run on the server. False if another process has it, or a limit cancelled it."""
        return self._moved(run_id, Pending())

    def _moved(self, run_id: UUID, state: State[Any]) -> bool:
        answer: OrchestrationResult[Any] = self.client.set_flow_run_state(run_id, state)
        return answer.status == SetStateStatus.ACCEPT

    def _execute(self, served: Served, run_id: UUID, running: Working) -> State[Any] | None:
        if served.in_process:
            # Trainings take minutes, and together at most one of the places
            with self._training if served.function == "retrain" else nullcontext(), self._places:
                self._execute_in_process(run_id, running)
            return self.client.read_flow_run(run_id).state
        run = self.client.read_flow_run(run_id)
        if self._distributed(served):
            try:
                return run_flow(served.flow, flow_run=run, return_type="state")  # type: ignore[return-value]
            except (Abort, Pause) as error:
                log.info("clock.run_refused", flow=served.name, run=str(run_id), why=str(error))
                return None
        if not self._moved(run_id, Running()):
            return None
        state = self._call(served, run)
        self.client.set_flow_run_state(run_id, state)
        return state

    def _distributed(self, served: Served) -> bool:
        """Whether the flow starts tasks, which need Prefect's engine around them."""
        return served.function == "shadow_run" and least_settings().shadow_dask is not None

    def _call(self, served: Served, run: FlowRun) -> State[Any]:
        """Call the flow's function as its run.

        Prefect's engine would also listen for suspensions, on a connection and a thread for each run, send heartbeats
        and keep results, which takes longer than a tick.
        """
        try:
            given = served.flow.validate_parameters(run.parameters)
            name = str(served.flow.flow_run_name).format(**given)
            with suppress(httpx.HTTPError, ObjectNotFound):  # a name must not keep a rollback from users
                self.client.set_flow_run_name(run.id, name)
            with FlowRunContext(
                flow=served.flow,
                flow_run=run,
                parameters=given,
                client=self.client,
                task_runner=served.flow.task_runner,
                result_store=get_result_store(),
            ):
                state: State[Any] = served.flow.fn(**given)
        except Exception as error:  # an error that no flow expects: the run must end, and say why
            log.exception("clock.run_failed", flow=served.name, run=str(run.id))
            state = Failed(message=f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": "))
        return state

    def _execute_in_process(self, run_id: UUID, running: Working) -> None:
        environment = os.environ | {"PREFECT__FLOW_RUN_ID": str(run_id)}
        running.process = subprocess.Popen(
            [sys.executable, "-m", "prefect.engine"], env=environment, start_new_session=True
        )
        code = running.process.wait()
        if code:
            state = self.client.read_flow_run(run_id).state
            if state is not None and not state.is_final():
                gone: State[Any] = Crashed(message=f"Its process ended with exit code {code}.")
                self.client.set_flow_run_state(run_id, gone, force=True)

    def look(self) -> float:
        """Take over requests that nobody does, and cancel runs as owners wish.

        Returns:
            Seconds until the next look: less than `LOOK_S` if a request waits that is to be alerted or taken over.
        """
        again_s = LOOK_S
        with suppress(httpx.HTTPError):
            again_s = min([LOOK_S, *self._find_waiting()])
            self._cancel()
            self._send_heartbeats()
        try:
            self._renew()
            for request in owner_requests.left_undone(self.engine, now=datetime.now(UTC)):
                self._take_over(request)
        except _UNAVAILABLE as error:
            log.warning("clock.database_away", error=type(error).__name__)
        return again_s

    def _find_waiting(self) -> list[float]:
        """Take over the changes that have not begun, or have not ended: their worker has ended, or never came.

        Returns:
            Seconds until each of them has waited for `ALERT_AFTER`, or for `LEASE`.
        """
        now, later = datetime.now(UTC), []
        for run in self._runs(StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING, StateType.CRASHED):
            served = self.served.get(run.deployment_id) if run.deployment_id else None
            if served is None or not served.is_change or run.id in self._running:
                continue
            begun = run.state_type == StateType.RUNNING
            if begun and served.in_process:  # it may take longer than the lease
                continue
            waited = now - (run.expected_start_time or now)
            moved = run.state if begun or run.state_type == StateType.PENDING else None
            held = now - moved.timestamp if moved else waited
            limits = [(LEASE, held), *([] if begun else [(ALERT_AFTER, waited)])]
            later += [(limit - so_far).total_seconds() for limit, so_far in limits if so_far < limit]
            request = Request(run.id, served.function, run.parameters, creator_of(run))
            if not begun and waited >= ALERT_AFTER:
                with suppress(*_UNAVAILABLE):
                    market_time = least_settings().on_clock_of(self.engine).now()
                    owner_requests.alert_waiting(self.engine, request, waited=waited, now=market_time)
            if held >= LEASE:
                self._take_over(request)
        return later

    def _renew(self) -> None:
        """Keep what runs in a process: it may take longer than the lease. A thread that hangs is to be taken over."""
        with self._lock:
            working = [run for run, each in self._running.items() if each.served.is_change and each.served.in_process]
        owner_requests.renew(self.engine, working, by=self.name, now=datetime.now(UTC))

    def _take_over(self, request: Request) -> None:
        """Do a request without a run of Prefect, and report the result there."""
        by_function = {each.function: each for each in self.served.values()}
        served = by_function.get(request.action)
        if served is None or not self._taken(request):
            return
        self._begin(request.id, served, lambda *_: self._do_without_prefect(served, request))

    def _do_without_prefect(self, served: Served, request: Request) -> None:
        with suppress(httpx.HTTPError, ObjectNotFound):
            known = self.client.read_flow_run(request.id).state
            if known is not None and self._settle(request, known):
                return
        with taken_over(request):
            try:
                if owner_requests.is_made(self.engine, request):
                    state: State[Any] = Completed(message=DONE_BEFORE)
                else:
                    state = served.flow.fn(**served.flow.validate_parameters(dict(request.parameters)))
            except DBAPIError:
                return  # another clock, or this one, tries again after the lease
            except Exception as error:  # noqa: BLE001  e.g. invalid parameters. The request must end with a line
                state = Failed(message=reason_of(error))
        self._settle(request, state)
        self._report(request, state)

    def _cancel(self) -> None:
        for run in self._runs(StateType.CANCELLING):
            running = self._running.get(run.id)
            if running is not None and running.process is not None:
                running.process.terminate()
            if running is None or running.process is not None:
                self.client.set_flow_run_state(run.id, Cancelled(message="Cancelled by an owner."), force=True)

    def _send_heartbeats(self) -> None:
        """Send heartbeats of long runs in this process. Without them an automation marks the runs as crashed."""
        long = time.monotonic() - HEARTBEAT_S
        with self._lock:
            working = [run for run, each in self._running.items() if each.since < long and each.process is None]
        events = [
            Event(
                event="prefect.flow-run.heartbeat",
                resource=Resource({"prefect.resource.id": f"prefect.flow-run.{run}"}),
                related=[
                    RelatedResource({"prefect.resource.id": "prefect.tag.rollout", "prefect.resource.role": "tag"})
                ],
            )
            for run in working
        ]
        if events:
            self.client.request("POST", "/events", json=[each.model_dump(mode="json") for each in events])

    def _runs(self, *states: StateType) -> list[FlowRun]:
        now = datetime.now(UTC)
        return self.client.read_flow_runs(
            flow_run_filter=FlowRunFilter(
                state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(states))),
                expected_start_time=FlowRunFilterExpectedStartTime(before_=now, after_=now - _FORGOTTEN),
            ),
            deployment_filter=DeploymentFilter(
                id=DeploymentFilterId(any_=[each.id for each in self.served.values() if each.every_s is None])
            ),
        )

    def _run_alone(self) -> None:
        """Run the flows of every minute without the server: rollouts must be judged in any case."""
        for served in self.served.values():
            every_s = served.every_s
            if every_s is None or self._hindered(served):
                continue
            if time.monotonic() - self._begun.get(served.id, 0.0) < max(every_s, MINUTE_S):
                continue
            self._begun[served.id] = time.monotonic()
            self._begin(uuid4(), served, lambda served, *_: self._do_alone(served))

    def _run_unscheduled(self) -> None:
        """Run the flows of every minute that a server answers about and has ceased to schedule.

        It happens when its API is up and the process with its services is not.
        """
        for served in self.served.values():
            idle_s = time.monotonic() - self._begun.setdefault(served.id, time.monotonic())
            if served.every_s is None or idle_s < UNSCHEDULED_S or self._hindered(served):
                continue
            self._begun[served.id] = time.monotonic()
            if self._is_forgotten(served):
                log.warning("clock.not_scheduled", flow=served.name)
                self._begun[served.id] += MINUTE_S - UNSCHEDULED_S  # the next one is due in a minute
                self._begin(uuid4(), served, lambda served, *_: self._do_alone(served))

    def _is_forgotten(self, served: Served) -> bool:
        """Whether no run of the deployment was due lately, although its schedule is active."""
        now = datetime.now(UTC)
        try:
            due = self.client.read_flow_runs(
                flow_run_filter=FlowRunFilter(
                    expected_start_time=FlowRunFilterExpectedStartTime(
                        before_=now, after_=now - timedelta(seconds=UNSCHEDULED_S)
                    )
                ),
                deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[served.id])),
                limit=1,
            )
            found = self.client.read_deployment(served.id)
        except (httpx.HTTPError, ObjectNotFound):
            return False
        return not due and not found.paused and any(each.active for each in found.schedules)

    def _do_alone(self, served: Served) -> None:
        try:
            state = served.flow.fn()
            log.info("clock.ran_alone", flow=served.name, line=state.message)
        except Exception as error:  # noqa: BLE001  the next minute tries again
            log.warning("clock.failed_alone", flow=served.name, error=f"{type(error).__name__}: {error}")

    def _stop(self) -> None:
        until = time.monotonic() + STOP_WITHIN_S
        with self._lock:
            left = list(self._running.values())
        for each in left:
            if each.process is not None:
                each.process.terminate()
        for each in left:
            if each.thread is not None:
                each.thread.join(max(0.0, until - time.monotonic()))
        for each in left:
            if each.process is not None:
                with suppress(ProcessLookupError):
                    os.killpg(each.process.pid, signal.SIGKILL)


def _due_at(run: FlowRunResponse) -> datetime:
    at = run.next_scheduled_start_time or run.expected_start_time
    return at if at is not None else datetime.now(UTC)


def run_clock(served: Sequence[Served], *, alive: Path | None = None) -> None:
    """Run until SIGTERM or Ctrl-C. *alive* is a file to touch every few seconds."""
    with ExitStack() as stack:
        stop = stack.enter_context(_until_signal())
        context = stack.enter_context(SyncClientContext())
        engine = least_settings().open_engine()
        stack.callback(engine.dispose)
        with suppress(OSError):  # the first worker starts it again, and reports it if that fails too
            fork_server()
        name = f"{socket.gethostname()} {os.getpid()}"
        Clock({each.id: each for each in served}, context.client, engine, name).run(stop, alive)


@contextmanager
def _until_signal() -> Iterator[threading.Event]:
    stop = threading.Event()
    before = {number: signal.signal(number, lambda *_given: stop.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
