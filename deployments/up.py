"""`rollout up`: a Prefect server, the flows, the API and a replayed market in one command."""

import importlib.util
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

from sqlalchemy import Engine, make_url

from deployments import prefect_yaml
from deployments.demo_seed import replay_span, seed
from deployments.processes import HOST, Child, ChildDied, Supervisor, keep_port, last_words
from strategy_core.domain.errors import InvalidSetting, MissingExtra
from strategy_core.market.open import open_source
from strategy_core.market.source import ReplayClock
from strategy_core.services.database import upgrade
from strategy_core.services.queries import read_activity
from strategy_core.settings import Settings, read_settings

_HEALTHY_WITHIN_S = 180.0
_LOOK_EVERY_S = 1.0
_API_PORT = 8321  # if it is free
_METRICS_PORT = 9464  # if it is free
_API_NEEDS = ("fastapi_offline", "jwt", "uvicorn")
_API_KEYS = ("ROLLOUT_API_SECRET", "ROLLOUT_API_PUBLIC_KEY", "ROLLOUT_API_JWKS_URL")
_LEASES = "prefect.server.concurrency.lease_storage.filesystem"  # in memory, a killed server forgets who runs
_PRIVATE = {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}


def up(
    *,
    database_url: str | None,
    feed: str | None,
    symbol: str | None,
    speed: float,
    port: int | None,
    state: Path,
    say: Callable[[str], None] = print,
) -> int:
    """Run everything until Ctrl-C or SIGTERM and return the exit code: 0 when asked to stop.

    A process that dies is started again, and that is said; one that dies again and again ends all of it, with exit code
    1. A second start goes on where the first stopped. Schedules are those of prefect.yaml, or of a copy in *state*.

    Args:
        database_url: of the rollout's own database; a SQLite file in *state*, unless given, whatever the environment
            says: a replayed market is not for a database that serves users.
        feed, symbol: candles, as `market.open.open_source` takes them; the settings' feed, unless given.
        speed: simulated seconds in a real second. Runs come once a minute: 5760 plays four days between two of them.
        port: of the Prefect server; a free one, unless given. With PREFECT_API_URL set, that server is used.
        state: folder of databases and logs, made if need be.
        say: takes what an owner should read, line by line.

    Raises:
        RolloutError: the feed, the database or an argument is not usable; nothing is left running.
    """
    if importlib.util.find_spec("prefect") is None:
        raise MissingExtra("rollout up", "prefect")
    state = state.resolve()
    state.mkdir(parents=True, exist_ok=True)
    given = {"feed": feed, "symbol": symbol, "database_url": database_url or f"sqlite:///{state / 'rollout.db'}"}
    settings = read_settings().model_copy(update={name: value for name, value in given.items() if value is not None})
    with _asked_to_stop() as asked, ExitStack() as stack:
        try:
            _run(settings, speed, port, state, asked, stack, say)
        except ChildDied as died:
            say(str(died))
            return 1
    return 0


def _run(
    settings: Settings,
    speed: float,
    port: int | None,
    state: Path,
    asked: threading.Event,
    stack: ExitStack,
    say: Callable[[str], None],
) -> None:
    ReplayClock(datetime.now(UTC), datetime.now(UTC), speed)  # what is not usable is refused before anything is started
    engine = settings.open_engine()
    stack.callback(engine.dispose)
    upgrade(engine)
    source = open_source(settings.feed, symbol=settings.symbol, timeframe=settings.timeframe)
    start, end = replay_span(engine, source)
    api_url, environment = os.environ.get("PREFECT_API_URL"), {**os.environ, **_PRIVATE}
    supervisor, served_alone = Supervisor(say), []
    stack.callback(supervisor.stop)
    if api_url is None:
        port = port or keep_port(stack)
        api_url, environment = f"http://{HOST}:{port}/api", _own_prefect(state, port)
        server = _start(supervisor, "Prefect server", ["prefect", "server", "start"], environment, state)
        say(f"Starting a Prefect server, pid {server.pid} …")
        served_alone = ["--alone"]  # on a server of our own nobody else does
    news = ActivityFeed(engine)
    if seed(engine, source, now=start, speed=speed):
        say("A new database: two rollouts, replayed up to now. What happened, by the market's clock:")
        news.tell(say)
    health = f"{api_url}/health"
    _wait_until_healthy(health, supervisor, asked)
    if asked.is_set():
        return
    settings = settings.model_copy(
        update={"replay_from": start, "replay_started_at": datetime.now(UTC), "replay_speed": speed}
    )
    environment = environment | {"PREFECT_API_URL": api_url, **_variables(settings)}  # not the server's
    file = state / "prefect.yaml" if (state / "prefect.yaml").exists() else prefect_yaml()
    flows = ["deployments.serve", str(file), *served_alone]
    _start(supervisor, "flows", flows, environment, state, may_start=lambda: _healthy(health))
    api = _api_environment(stack)
    if api:
        _start(supervisor, "API", ["strategy_core.api"], environment | api, state)
    metrics = keep_port(stack, _METRICS_PORT)
    _start(supervisor, "metrics", ["strategy_core.cli", "exporter", "--port", str(metrics)], environment, state)
    shown = make_url(settings.database_url).render_as_string(hide_password=True)
    for what, value in {
        "Prefect UI": api_url.removesuffix("/api"),
        "API": _told_of_api(api),
        "reports": f"{api_url.removesuffix('/api')}/v2/artifacts",  # to which no page of Prefect's leads
        "metrics": f"http://{HOST}:{metrics}/metrics",
        "database": shown,
        "candles": f"{source.name}: {', '.join(source.symbols())}",
        "clock": f"{start:%Y-%m-%d %H:%M} UTC, {speed / 60:.4g} h a minute, candles until {end:%Y-%m-%d}",
        "schedules": str(file),
        "running": ", ".join(f"{child.name} (pid {child.pid}, log {child.log})" for child in supervisor.children),
    }.items():
        say(f"{what:<12}{value}")
    say(f"In another shell:  export ROLLOUT_DATABASE_URL='{shown}'; rollout status fib_rsi; rollout alerts list")
    say("Ctrl-C stops all of it. What changes:")
    while not asked.wait(_LOOK_EVERY_S):
        supervisor.look()
        news.tell(say)
    say("Stopping …")


def _start(
    supervisor: Supervisor, name: str, module: list[str], environment: Mapping[str, str], state: Path, **how: Any
) -> Child:
    log = state / "logs" / f"{name.lower().replace(' ', '-')}.log"
    return supervisor.start(name, [sys.executable, "-m", *module], environment=environment, log=log, **how)


def _own_prefect(state: Path, port: int) -> dict[str, str]:
    """Return an environment in which Prefect knows this server alone, whatever the user's own Prefect is set to."""
    others = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return {
        **others,
        **_PRIVATE,
        "PREFECT_HOME": str(state / "prefect"),
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{state / 'prefect' / 'prefect.db'}",
        "PREFECT_SERVER_API_HOST": HOST,
        "PREFECT_SERVER_API_PORT": str(port),
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": _LEASES,
    }


def _variables(settings: Settings) -> dict[str, str]:
    """Return the settings as the environment that a flow reads them from."""
    prefix = settings.model_config["env_prefix"].upper()
    inherited = {"prometheus_header", "oanda_token", "alert_urls"}  # there already; written out, they would be masked
    values = settings.model_dump(mode="json", exclude_none=True, exclude=inherited)
    return {f"{prefix}{name.upper()}": str(value) for name, value in values.items()}


def _api_environment(stack: ExitStack) -> dict[str, str]:
    """Return what the API is told beside the environment: without a key of its owner's, that it is for development.

    Nothing, when it is not installed.
    """
    if any(importlib.util.find_spec(package) is None for package in _API_NEEDS):
        return {}
    told = {
        "ROLLOUT_API_HOST": HOST,
        "ROLLOUT_API_PORT": os.environ.get("ROLLOUT_API_PORT") or str(keep_port(stack, _API_PORT)),
    }
    return told if any(os.environ.get(key) for key in _API_KEYS) else told | {"ROLLOUT_API_DEVELOPMENT": "1"}


def _told_of_api(api: Mapping[str, str]) -> str:
    if not api:
        return "not installed: pip install 'strategy-rollout[api]'"
    url = f"http://{HOST}:{api['ROLLOUT_API_PORT']}"
    token = "ROLLOUT_API_DEVELOPMENT=1 rollout token --name you" if "ROLLOUT_API_DEVELOPMENT" in api else "yours"
    return f"{url}/docs, with a token: {token}"


def _wait_until_healthy(url: str, supervisor: Supervisor, asked: threading.Event) -> None:
    tries = int(_HEALTHY_WITHIN_S / _LOOK_EVERY_S)
    for _ in range(tries):
        supervisor.check()
        if _healthy(url) or asked.wait(_LOOK_EVERY_S):
            return
    if supervisor.children:
        raise ChildDied(last_words(supervisor.children[0], f"is not healthy after {_HEALTHY_WITHIN_S:g} s"))
    raise InvalidSetting("PREFECT_API_URL", url.removesuffix("/health"), "the address of a Prefect server that answers")


def _healthy(url: str) -> bool:
    try:
        with urlopen(url, timeout=5) as answer:  # noqa: S310  our own server, or the one the owner named
            return bool(answer.status == 200)
    except (URLError, OSError):
        return False


@contextmanager
def _asked_to_stop() -> Iterator[threading.Event]:
    """Yield an event that is set by Ctrl-C or SIGTERM, which do nothing else meanwhile."""
    asked = threading.Event()

    def ask(_signal: int, _frame: FrameType | None) -> None:
        asked.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class ActivityFeed:
    """What has happened since it was made, or since it was told last."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        newest = read_activity(engine, limit=1)
        self._event = max((event.id or 0 for event in newest.events), default=0)
        self._alert = max((alert.id or 0 for alert in newest.alerts), default=0)

    def tell(self, say: Callable[[str], None]) -> None:
        """Say what is new, oldest first; an alert follows the change that raised it."""
        found = read_activity(self._engine, after_event=self._event, after_alert=self._alert)
        events, alerts = found.events, found.alerts
        changes = [
            (event.at, 0, f"{event.strategy_name} {event.version}  {event.action.replace('_', ' ')}: {event.reason}")
            for event in events
        ]
        told = [(alert.at, 1, f"alert {alert.id}, {alert.severity}: {alert.text}") for alert in alerts]
        for at, _, line in sorted([*changes, *told], key=lambda each: each[:2]):
            say(f"{at:%Y-%m-%d %H:%M}  {line.removesuffix(': ')}")
        self._event = max([self._event, *(event.id or 0 for event in events)])
        self._alert = max([self._alert, *(alert.id or 0 for alert in alerts)])
