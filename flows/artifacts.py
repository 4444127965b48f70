"""Reports as Prefect artifacts. They are written after all changes are committed, and errors are only logged.

The progress of a rollout is one artifact that each tick overwrites: one per tick would fill Prefect's database. The
HTTP API is used directly, because the client's own methods send each text as an event too.

Only artifacts that exist are linked: Prefect's page of a key without artifacts is an error.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from re import fullmatch
from typing import Any
from uuid import UUID

import httpx
import structlog
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.context import FlowRunContext, SettingsContext, get_settings_context
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, PREFECT_UI_URL, Settings, temporary_settings
from sqlalchemy import Engine

from strategy_core.domain.alerts import clipped
from strategy_core.domain.audit import shown_actor, storable
from strategy_core.domain.links import Links
from strategy_core.domain.ramp import ENDED, State, Step
from strategy_core.report.comparison import comparisons_markdown
from strategy_core.report.markdown import sections
from strategy_core.report.rollout import change_markdown, progress_markdown, rollback_markdown
from strategy_core.services.history import ComparisonCurves
from strategy_core.services.queries import change_of_request
from strategy_core.services.reports import Progress, RollbackFacts, read_progress, read_rollback
from strategy_core.services.tick import TickResult
from strategy_core.settings import PAGE, least_settings
from strategy_core.settings import Settings as RolloutSettings
from strategy_core.store.tables import AuditEvent, Rollout

TOGETHER_S = 15.0  # for all artifacts of a run: the next tick starts within a minute
KEPT = 30  # artifacts kept per key
FORMS_KEPT_S, ASK_AGAIN_S = 600.0, 60.0  # for which forms are not asked for again, after an answer and without one
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


def link_to(key: str, words: str, known: Known) -> str:
    """Return a Markdown link to the newest artifact of *key*, or to the list of its artifacts.

    The link is relative, so that it works in both Prefect user interfaces and at any address.
    """
    path = f"artifact/{known[key][0]}" if known.get(key, ("",))[0] else f"key/{key}"
    return f"[{words}](../{path})"


def links_when_needed(settings: RolloutSettings) -> Callable[[], Links]:
    """Return what finds the addresses for alerts: of the console, and of Prefect's forms at PREFECT_UI_URL.

    It may be called in any thread, and returns what it finds within seconds.
    """
    context = copy_context()
    return lambda: context.copy().run(_absolute_links, settings)


def _absolute_links(settings: RolloutSettings) -> Links:
    with _best_effort("links") as client:
        if client is not None and (base := _ui_url()):
            return settings.links({name: f"{base}/{path}" for name, path in _form_paths(client).items()})
    return settings.links()


def show_tick(engine: Engine, ticked: Sequence[TickResult], *, now: datetime, settings: RolloutSettings) -> None:
    """Write a report for each rollback, then the progress of each rollout, starting with the oldest artifact."""
    with _best_effort("tick") as client:
        if client is None or not ticked:
            return
        deadline = time.monotonic() + TOGETHER_S
        pages = _Pages(client, settings)
        undone = [each for each in ticked if each.ruling is not None and each.ruling.step is Step.ROLL_BACK]
        for each in undone:
            if time.monotonic() < deadline:
                pages.show_rollback(read_rollback(engine, rollout_id=each.rollout_id))
        keys = {each.rollout_id: key_of("rollout", each.strategy_name, each.version) for each in ticked}
        pages.find(*keys.values(), *_linked_keys(ticked))
        oldest = sorted(keys, key=lambda rollout_id: pages.known.get(keys[rollout_id], ("", ""))[1])
        clock = settings.clock_check
        for number, progress in enumerate(read_progress(engine, oldest, now=now, clock=clock), 1):
            pages.show_progress(progress)
            if time.monotonic() > deadline and number < len(oldest):
                log.warning("artifacts.cut_short", shown=number, rollouts=len(oldest))
                break
        for each in undone:
            pages.log_links(each.strategy_name, each.version, each.rollout_id, "rollback", "rollout")


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
                _show_event(_Pages(client, settings.on_clock_of(engine)), engine, event)
        finally:
            engine.dispose()


def show_comparisons(found: Sequence[ComparisonCurves]) -> None:
    """Write the report of the nightly comparisons."""
    if found:
        names = ", ".join(f"{one.report.strategy_name} {one.report.shadow_version}" for one in found)
        show_page(_COMPARISONS, comparisons_markdown(found), f"Against the active versions: {names}")


def show_page(key: str, text: str, words: str) -> str:
    """Write a page that an owner asked for, and return a suffix for the result line that names it."""
    with _best_effort("page") as client:
        if client is not None:
            _create(client, key, text, words)
            _prune(client, key)
            _log_link(f"report {key}", _artifact_url(key))
            return f": artifact {key}"
    return ""


def _show_event(pages: "_Pages", engine: Engine, event: AuditEvent) -> None:
    settings, links = pages.settings, []
    change = key_of("change", event.strategy_name)
    pages.find(change, _COMPARISONS)
    pages.known.setdefault(change, ("", ""))
    if event.action == Step.ROLL_BACK.value:
        key = pages.show_rollback(read_rollback(engine, event=event))
        links.append(link_to(key, "Why, and what it cost", pages.known))
    if event.rollout_id is not None:
        now, clock = settings.now(), settings.clock_check
        for progress in read_progress(engine, [event.rollout_id], now=now, clock=clock):
            version = progress.status.rollout.version
            key = key_of("rollout", event.strategy_name, version)
            pages.find(key, key_of("rollback", event.strategy_name, version))
            pages.show_progress(progress)
            links.append(link_to(key, "How the rollout goes", pages.known))
    links.extend(pages.console_link(event.strategy_name, event.rollout_id))
    by = shown_actor(event.actor, event.source)
    words = f"{event.strategy_name} {event.version}: {event.action.replace('_', ' ')} by {by}"
    _create(pages.client, change, change_markdown(event, footer=" · ".join(links)), words)
    _prune(pages.client, change)
    kinds = ("rollback", "rollout") if event.action == Step.ROLL_BACK.value else ("rollout",)
    pages.log_links(event.strategy_name, event.version, event.rollout_id, *kinds)


@dataclass(slots=True)
class _Pages:
    """The artifacts of one run, with links to each other, to the console and to Prefect's forms.

    Attributes:
        known: the artifacts that exist. The id of one that this run has made is unknown.
    """

    client: SyncPrefectClient
    settings: RolloutSettings
    known: Known = field(default_factory=dict)
    _links: Links | None = None

    @property
    def links(self) -> Links:
        """Relative ones, so that they stay in the user interface that is read."""
        if self._links is None:
            paths = _form_paths(self.client)
            self._links = self.settings.links({name: f"../../{path}" for name, path in paths.items()})
        return self._links

    def find(self, *keys: str) -> None:
        self.known |= _newest(self.client, [key for key in dict.fromkeys(keys) if key not in self.known])

    def show_rollback(self, found: RollbackFacts) -> str:
        event = found.event
        key = key_of("rollback", event.strategy_name, event.version)
        words = f"{event.strategy_name} {event.version} was rolled back by {shown_actor(event.actor, event.source)}"
        text = sections(rollback_markdown(found), *self.console_link(event.strategy_name, event.rollout_id))
        _create(self.client, key, text, words)
        self.known[key] = ("", "")
        return key

    def show_progress(self, progress: Progress) -> None:
        """Overwrite the artifact of the rollout, or create it."""
        rollout = progress.status.rollout
        key = key_of("rollout", rollout.strategy_name, rollout.version)
        text = progress_markdown(progress, footer=self._footer(rollout))
        state = rollout.state.replace("_", " ")
        words = f"{rollout.strategy_name} {rollout.version}: {state} at {progress.percent:g} % of users"
        if artifact_id := self.known.get(key, ("",))[0]:
            change = {"data": storable(text), "description": _inert(words)}
            self.client.request("PATCH", "/artifacts/{id}", path_params={"id": artifact_id}, json=change)
        else:
            _create(self.client, key, text, words)
            self.known[key] = ("", "")

    def console_link(self, strategy_name: str, rollout_id: UUID | None) -> Iterator[str]:
        """Yield the link, if there is a console. Its words hold no name, which one interface would show escaped."""
        if page := self.links.page(strategy_name, rollout_id):
            yield f"[In the console]({page})"

    def log_links(self, strategy_name: str, version: str, rollout_id: UUID | None, *kinds: str) -> None:
        """Log where the run's reports are. Prefect shows addresses in logs as links, unlike those in results."""
        for kind in kinds:
            key = key_of(kind, strategy_name, version)
            if key in self.known:
                _log_link(f"report {key}", _artifact_url(key))
        _log_link(f"{strategy_name} {version} in the console", self.links.page(strategy_name, rollout_id))

    def _footer(self, rollout: Rollout) -> str:
        """Return what can be read and done next: forms, other artifacts, and the console's page."""
        names = rollout.strategy_name, rollout.version
        forms = [f"[{words}]({form})" for words, form in _forms(self.links, rollout) if form]
        read = [
            link_to(key, words, self.known)
            for key, words in (
                (key_of("rollback", *names), "Why it was rolled back"),
                (key_of("change", rollout.strategy_name), "What owners changed"),
                (_COMPARISONS, "The nightly comparison"),
            )
            if key in self.known and (rollout.state == State.ROLLED_BACK or not key.startswith("rollback-"))
        ]
        read.extend(self.console_link(rollout.strategy_name, rollout.id))
        shown = [f"**Forms, filled in:** {' · '.join(forms)}" if forms else "", " · ".join(read)]
        return "\n\n".join(each for each in shown if each)


def _forms(links: Links, rollout: Rollout) -> Iterator[tuple[str, str]]:
    """Yield the words and the address of each form that fits the state of the rollout, the most likely one first."""
    about = {"strategy_name": rollout.strategy_name}
    state = State(rollout.state)
    match state:
        case State.AWAITING_APPROVAL:
            yield "Approve the next stage", links.form("approve-stage", **about)
        case State.AWAITING_DECISION:
            yield "Decide", links.form("decide", **about)
        case State.PAUSED:
            yield "Resume", links.form("resume", **about)
        case State.RUNNING if rollout.promoted_at is None:
            yield "Pause", links.form("pause", **about)
    if state not in ENDED or state is State.COMPLETED:
        yield "Roll back", links.form("rollback", **about, version=rollout.version)


def _linked_keys(ticked: Sequence[TickResult]) -> Iterator[str]:
    """Yield the keys of the artifacts that a rollout's progress links to, if they exist."""
    yield _COMPARISONS
    for each in ticked:
        yield key_of("change", each.strategy_name)


def _create(client: SyncPrefectClient, key: str, text: str, words: str) -> None:
    artifact = {
        "key": key,
        "type": "markdown",
        "data": storable(text),
        "description": _inert(words),
        "flow_run_id": str(flow_run.id),
    }
    client.request("POST", "/artifacts/", json=artifact)


def _form_paths(client: SyncPrefectClient) -> Mapping[str, str]:
    """Return the path of each owner deployment's form in Prefect's user interface, by name.

    Kept for some minutes: a deployment keeps its id until it is deleted. A server that does not answer is not asked
    again at once, so that no alert waits for it twice.
    """
    global _known_forms  # noqa: PLW0603  one for the process
    server = PREFECT_API_URL.value() or ""
    with _asking:  # or another channel's alert would go without its form
        if _known_forms.server != server:
            _known_forms = _Forms(server)
        if time.monotonic() > _known_forms.ask_at:
            _known_forms.ask_at = time.monotonic() + ASK_AGAIN_S
            wanted = {"deployments": {"tags": {"all_": ["rollout", "owner"]}}}
            answer = client.request("POST", "/deployments/filter", json=wanted).json()
            paths = {one["name"]: f"deployments/deployment/{UUID(one['id'])}/run" for one in answer if "name" in one}
            _known_forms.paths, _known_forms.ask_at = paths, time.monotonic() + FORMS_KEPT_S
        return _known_forms.paths


def _ui_url() -> str:
    """Return the address of Prefect's user interface, or an empty text if it cannot stand in a link as it is."""
    url = (PREFECT_UI_URL.value() or "").rstrip("/")
    return url if PAGE.fullmatch(url) else ""


def _artifact_url(key: str) -> str:
    return f"{_ui_url()}/artifacts/key/{key}" if _ui_url() else ""


def _log_link(words: str, url: str) -> None:
    if url and FlowRunContext.get():
        get_run_logger().info("%s: %s", clipped(words), url)


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


@dataclass(slots=True)
class _Forms:
    """The forms of a server: their paths by deployment, and when to ask for them, in monotonic seconds."""

    server: str = ""
    ask_at: float = 0.0
    paths: Mapping[str, str] = field(default_factory=dict)


_known_forms, _asking = _Forms(), threading.Lock()


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
