"""Reports as Prefect artifacts. They are written after all changes are committed, and errors are only logged.

The progress of a rollout is one artifact that each tick overwrites: one per tick would fill Prefect's database. The
HTTP API is used directly, because the client's own methods send each text as an event too.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from re import fullmatch
from typing import Any

import httpx
import structlog
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.context import SettingsContext, get_settings_context
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, Settings, temporary_settings
from sqlalchemy import Engine

from strategy_core.domain.alerts import SURE, ClockCheck
from strategy_core.domain.audit import shown_actor, storable
from strategy_core.domain.ramp import Step
from strategy_core.report.comparison import comparisons_markdown
from strategy_core.report.rollout import change_markdown, progress_markdown, rollback_markdown
from strategy_core.services.history import ComparisonCurves
from strategy_core.services.queries import change_of_request
from strategy_core.services.reports import Progress, RollbackFacts, read_progress, read_rollback
from strategy_core.services.tick import TickResult
from strategy_core.settings import least_settings
from strategy_core.store.tables import AuditEvent, Rollout

TOGETHER_S = 15.0  # for all artifacts of a run: the next tick starts within a minute
KEPT = 30  # artifacts kept per key
_PATIENCE = httpx.Timeout(5.0, connect=1.0)
_COMPARISONS = "nightly-comparison"

Known = dict[str, tuple[str, str]]  # key -> id of its newest artifact, and its time of update

log = structlog.get_logger(__name__)


def key_of(kind: str, strategy_name: str, version: str = "") -> str:
    """Return an artifact key: lower case letters, digits and dashes.

    Names with other characters than those of `fib_rsi` and `2.0.0` get a digest, so that keys stay unique.
    """
    plain = fullmatch(r"[a-z0-9_]+", strategy_name) and fullmatch(r"[a-z0-9.]*", version)
    name = "-".join(part for part in (strategy_name, version) if part)
    shown = "".join(char if char.isascii() and char.isalnum() else "-" for char in name.lower())
    digest = "" if plain else f"-{sha256(f'{strategy_name}/{version}'.encode()).hexdigest()[:8]}"
    return f"{kind}-{shown}{digest}"


def link_to(key: str, words: str, *, known: Known | None = None) -> str:
    """Return a Markdown link to the newest artifact of *key*, or to the list of its artifacts.

    The link is relative, so that it works in both Prefect user interfaces and at any address.
    """
    path = f"artifact/{known[key][0]}" if known and key in known else f"key/{key}"
    return f"[{words}](../{path})"


def show_tick(engine: Engine, ticked: Sequence[TickResult], *, now: datetime, clock: ClockCheck = SURE) -> None:
    """Write a report for each rollback, then the progress of each rollout, starting with the oldest artifact."""
    with _best_effort("tick") as client:
        if client is None or not ticked:
            return
        deadline = time.monotonic() + TOGETHER_S
        for each in ticked:
            undone = each.ruling is not None and each.ruling.step is Step.ROLL_BACK
            if undone and time.monotonic() < deadline:
                _show_rollback(client, read_rollback(engine, rollout_id=each.rollout_id))
        keys = {each.rollout_id: key_of("rollout", each.strategy_name, each.version) for each in ticked}
        known = _newest(client, list(keys.values()))
        oldest = sorted(keys, key=lambda rollout_id: known.get(keys[rollout_id], ("", ""))[1])
        for number, progress in enumerate(read_progress(engine, oldest, now=now, clock=clock), 1):
            _show_progress(client, progress, known)
            if time.monotonic() > deadline and number < len(oldest):
                log.warning("artifacts.cut_short", shown=number, rollouts=len(oldest))
                return


def show_change(strategy_name: str | None) -> None:
    """Write a report of what this run changed of a strategy, and update its rollout's progress."""
    if strategy_name is None:  # a scheduled run: to open a client would cost more than the run
        return
    with _best_effort("change") as client:
        if client is None:
            return
        settings = least_settings()
        engine = settings.open_engine()
        try:
            event = change_of_request(engine, strategy_name=strategy_name, request_id=str(flow_run.id))
            if event is not None:
                clock = settings.on_clock_of(engine)
                _show_event(client, engine, event, clock.now(), clock.clock_check)
        finally:
            engine.dispose()


def show_comparisons(found: Sequence[ComparisonCurves]) -> None:
    """Write the report of the nightly comparisons."""
    with _best_effort("comparisons") as client:
        if client is not None and found:
            names = ", ".join(f"{one.report.strategy_name} {one.report.shadow_version}" for one in found)
            _create(client, _COMPARISONS, comparisons_markdown(found), f"Against the active versions: {names}")
            _prune(client, _COMPARISONS)


def show_page(key: str, text: str, words: str) -> str:
    """Write a page that an owner asked for, and return a suffix for the result line that names it."""
    with _best_effort("page") as client:
        if client is not None:
            _create(client, key, text, words)
            _prune(client, key)
            return f": artifact {key}"
    return ""


def _show_event(client: SyncPrefectClient, engine: Engine, event: AuditEvent, now: datetime, check: ClockCheck) -> None:
    links = []
    if event.rollout_id is not None:
        for progress in read_progress(engine, [event.rollout_id], now=now, clock=check):
            key = key_of("rollout", event.strategy_name, progress.status.rollout.version)
            known = _newest(client, [key])
            _show_progress(client, progress, known)
            links.append(link_to(key, "How the rollout goes", known=known))
    if event.action == Step.ROLL_BACK.value:
        links.append(link_to(_show_rollback(client, read_rollback(engine, event=event)), "Why, and what it cost"))
    key = key_of("change", event.strategy_name)
    by = shown_actor(event.actor, event.source)
    words = f"{event.strategy_name} {event.version}: {event.action.replace('_', ' ')} by {by}"
    _create(client, key, change_markdown(event, footer=" · ".join(links)), words)
    _prune(client, key)


def _show_rollback(client: SyncPrefectClient, found: RollbackFacts) -> str:
    event = found.event
    key = key_of("rollback", event.strategy_name, event.version)
    words = f"{event.strategy_name} {event.version} was rolled back by {shown_actor(event.actor, event.source)}"
    _create(client, key, rollback_markdown(found), words)
    return key


def _show_progress(client: SyncPrefectClient, progress: Progress, known: Known) -> None:
    """Overwrite the artifact of the rollout, or create it."""
    rollout = progress.status.rollout
    key = key_of("rollout", rollout.strategy_name, rollout.version)
    text = progress_markdown(progress, footer=" · ".join(_links(rollout)))
    state = rollout.state.replace("_", " ")
    words = f"{rollout.strategy_name} {rollout.version}: {state} at {progress.percent:g} % of users"
    if key in known:
        change = {"data": storable(text), "description": _inert(words)}
        client.request("PATCH", "/artifacts/{id}", path_params={"id": known[key][0]}, json=change)
    else:
        _create(client, key, text, words)


def _links(rollout: Rollout) -> Iterator[str]:
    if rollout.state == "rolled_back":
        yield link_to(key_of("rollback", rollout.strategy_name, rollout.version), "Why it was rolled back")
    yield link_to(key_of("change", rollout.strategy_name), "What owners changed")
    yield link_to(_COMPARISONS, "The nightly comparison")


def _create(client: SyncPrefectClient, key: str, text: str, words: str) -> None:
    artifact = {
        "key": key,
        "type": "markdown",
        "data": storable(text),
        "description": _inert(words),
        "flow_run_id": str(flow_run.id),
    }
    client.request("POST", "/artifacts/", json=artifact)


def _newest(client: SyncPrefectClient, keys: list[str]) -> Known:
    """Return the newest artifact of each key that has one."""
    found: Known = {}
    for first in range(0, len(keys), KEPT):
        wanted = {"artifacts": {"key": {"any_": keys[first : first + KEPT]}}, "limit": KEPT}
        answer = client.request("POST", "/artifacts/latest/filter", json=wanted).json()
        found |= {one["key"]: (one["latest_id"], one["updated"] or "") for one in answer}
    return found


def _prune(client: SyncPrefectClient, key: str) -> None:
    """Delete all but the newest KEPT artifacts of a key."""
    wanted: dict[str, Any] = {
        "artifacts": {"key": {"any_": [key]}},
        "sort": "CREATED_DESC",
        "offset": KEPT,
        "limit": 10,
    }
    for one in client.request("POST", "/artifacts/filter", json=wanted).json():
        client.request("DELETE", "/artifacts/{id}", path_params={"id": one["id"]})


def _inert(words: str) -> str:
    """Remove characters of links, images and tags, because some Prefect pages render descriptions as Markdown."""
    return storable(words).translate(dict.fromkeys(map(ord, "[]<>`")))


@dataclass(frozen=True, slots=True)
class _Impatient:
    """A client with a short timeout, for settings without retries. To make both takes as long as a tick.

    Attributes:
        made_for: the settings that were current.
    """

    made_for: Settings
    settings: Settings
    client: SyncPrefectClient

    @classmethod
    def make(cls, current: Settings) -> "_Impatient":
        with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}) as settings:
            client = get_client(httpx_settings={"timeout": _PATIENCE}, sync_client=True)
            return cls(current, settings, client.__enter__())  # open as long as the process


_kept: _Impatient | None = None


@contextmanager
def _best_effort(what: str) -> Iterator[SyncPrefectClient | None]:
    """Yield a client with a short timeout, or None outside a flow run. Errors are only logged."""
    global _kept  # noqa: PLW0603  one for the process
    if not flow_run.id or not PREFECT_API_URL.value():
        yield None
        return
    try:
        now = get_settings_context()
        if _kept is None or _kept.made_for is not now.settings:
            _kept = _Impatient.make(now.settings)
        with SettingsContext(profile=now.profile, settings=_kept.settings):
            yield _kept.client
    except Exception as error:  # noqa: BLE001  the change is committed and must not fail now
        log.warning("artifacts.not_shown", what=what, error=f"{type(error).__name__}: {error}")
