"""`rollout up`: a Prefect server, the flows, the API and a replayed market in one command."""

import getpass
import importlib.util
import os
import signal
import sys
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from urllib.error import URLError
from urllib.request import urlopen

from pydantic import AnyHttpUrl
from sqlalchemy import Engine, make_url

from deployments import prefect_yaml
from deployments.demo_seed import SEEDER, replay_span, seed
from deployments.processes import HOST, OPEN, Child, ChildEnded, addresses, keep_port, password
from strategy_core.domain.errors import InvalidSetting, RolloutError
from strategy_core.domain.parsing import check_owner_name
from strategy_core.isolation.sandbox import available
from strategy_core.market.calendars import DAY_ZONES
from strategy_core.market.open import open_source
from strategy_core.market.source import ReplayClock
from strategy_core.services.audit import read_events
from strategy_core.services.database import address, read_clock, start_clock, stop_clock, upgrade
from strategy_core.services.queries import all_versions, read_activity
from strategy_core.settings import Settings, read_settings

_HEALTHY_WITHIN_S = 180.0
_POLL_S = 1.0
_API_PORT = 8321  # if it is free
_METRICS_PORT = 9464  # if it is free
_API_NEEDS = ("fastapi_offline", "jwt", "uvicorn")
_API_KEYS = ("ROLLOUT_API_SECRET", "ROLLOUT_API_PUBLIC_KEY", "ROLLOUT_API_JWKS_URL")
_LEASES = "prefect.server.concurrency.lease_storage.filesystem"  # a restarted server must know which runs hold a slot
_REPLAY = "ROLLOUT_REPLAY_"
_SMALL = {  # what Prefect's own vacuum keeps. `maintain-database` deletes scheduled runs sooner
    "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
    "PREFECT_SERVER_SERVICES_DB_VACUUM_RETENTION_PERIOD": "7776000",  # 90 days of finished runs, in s
    "PREFECT_SERVER_EVENTS_RETENTION_PERIOD": "P2D",  # half of all bytes
}
_IDLE = {  # services of the server that `rollout up` has no use for, or that need not look every five seconds
    "PREFECT_SERVER_SERVICES_PAUSE_EXPIRATIONS_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_FOREMAN_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_LATE_RUNS_LOOP_SECONDS": "30",
    "PREFECT_SERVER_SERVICES_SCHEDULER_RECENT_DEPLOYMENTS_LOOP_SECONDS": "30",
    "PREFECT_SERVER_SERVICES_CLEANUP_RECONCILER_LOOP_SECONDS": "60",
    "PREFECT_SERVER_SERVICES_REPOSSESSOR_LOOP_SECONDS": "30",
    "PREFECT_SERVER_SERVICES_CANCELLATION_CLEANUP_LOOP_SECONDS": "60",
    "PREFECT_SERVER_EVENTS_PROACTIVE_GRANULARITY": "PT15S",
    "PYTHONTZPATH": "",  # the package tzdata lists the time zones a hundred times as fast, once for every schedule read
}
_PRIVATE = {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}


def up(
    *,
    database_url: str | None,
    feed: str | None,
    symbol: str | None,
    speed: float,
    port: int | None,
    state: Path,
    echo: Callable[[str], None] = print,
) -> int:
    """Run everything until Ctrl-C or SIGTERM, and return the exit code.

    The exit code is 0 after Ctrl-C or SIGTERM, and 1 if a child process ended: the end of its log is printed, and the
    others are stopped. The next start continues with the same database. Schedules come from prefect.yaml in *state*, or
    from the packaged one.

    Args:
        database_url: the platform's database. Default: a SQLite file in *state*. The environment is ignored on purpose:
            a replayed market must not write to a database that serves users.
        feed, symbol: candles, as for `market.open.open_source`. Default: the feed of the settings.
        speed: simulated seconds per second. Runs start every minute: 5760 means four days between two runs.
        port: port of the Prefect server. Default: a free one. With PREFECT_API_URL set, that server is used instead.
        state: folder for databases and logs, created if missing.
        echo: prints one line.

    Raises:
        RolloutError: the feed, the database or an argument cannot be used. No process is left running.
    """
    state = state.resolve()
    state.mkdir(parents=True, exist_ok=True)
    given = {"feed": feed, "symbol": symbol, "database_url": database_url or _own_database(state)}
    settings = read_settings().model_copy(update={name: value for name, value in given.items() if value is not None})
    with _stop_requested() as stop, ExitStack() as stack:
        try:
            _run(settings, speed, port, state, stop, stack, echo)
        except ChildEnded as ended:
            echo(str(ended))
            return 1
    return 0


def _run(
    settings: Settings,
    speed: float,
    port: int | None,
    state: Path,
    stop: threading.Event,
    stack: ExitStack,
    echo: Callable[[str], None],
) -> None:
    ReplayClock(datetime.now(UTC), datetime.now(UTC), speed)  # refuses a bad speed before anything is started
    echo(f"Opening the database and the candles of {settings.feed} …")
    engine = _open(settings, state, stack)
    source = open_source(
        settings.feed,
        symbol=settings.symbol,
        timeframe=settings.timeframe,
        day_zone=DAY_ZONES[settings.calendar_name],
    )
    start, end = replay_span(engine, source)
    children: list[Child] = []

    def start_child(name: str, module: list[str], environment: Mapping[str, str]) -> Child:
        log = state / "logs" / f"{name.lower().replace(' ', '-')}.log"
        child = Child(name, [sys.executable, "-m", *module], environment=environment, log=log)
        stack.callback(child.stop)
        children.append(child)
        return child

    api_url, environment = os.environ.get("PREFECT_API_URL"), {**_without(_REPLAY), **_PRIVATE}
    alone: list[str] = []
    login: dict[str, str] = {}
    if api_url is None:
        port = _free_port(port, stack)
        secret = state / "prefect-password"
        login = {"PREFECT_API_AUTH_STRING": password(secret)}
        api_url, environment = f"http://{HOST}:{port}/api", _own_prefect(state, port)
        its_login = {"PREFECT_SERVER_API_AUTH_STRING": login["PREFECT_API_AUTH_STRING"]}
        server = start_child("Prefect server", ["deployments.console"], environment | its_login)
        echo(f"Starting a Prefect server, pid {server.pid} …")
        alone = ["--alone"]  # this server has no other clients
    activity = ActivityFeed(engine)
    if seed(engine, source, now=start, speed=speed, echo=echo):
        echo("The history of the two example rollouts, in market time:")
        activity.print_new(echo)
    _wait_until_healthy(api_url, children, stop)
    if stop.is_set():
        return
    _set_clock(engine, ReplayClock(datetime.now(UTC), start, speed), stack)
    api = _api_environment(stack)
    if api and settings.console_url is None:
        settings = settings.model_copy(
            update={"console_url": AnyHttpUrl(f"http://{HOST}:{api['ROLLOUT_API_PORT']}/console")}
        )
    environment = (
        environment | login | {"PREFECT_API_URL": api_url, **_variables(settings)}
    )  # the server needs none of these
    file = state / "prefect.yaml" if (state / "prefect.yaml").exists() else prefect_yaml()
    start_child("flows", ["deployments.serve", str(file), *alone], environment)
    if api:
        start_child("API", ["strategy_core.api"], environment | api)
    metrics = keep_port(stack, _METRICS_PORT)
    start_child("metrics", ["strategy_core.cli", "exporter", "--port", str(metrics)], environment)
    shown = make_url(settings.database_url).render_as_string(hide_password=True)
    for what, value in {
        "Prefect UI": _ui_line(api_url.removesuffix("/api"), login),
        "API": _api_line(api),
        "console": _console_line(api, settings),
        "reports": f"{api_url.removesuffix('/api')}/v2/artifacts",  # in no menu of the Prefect UI
        "metrics": f"http://{HOST}:{metrics}/metrics",
        "database": shown,
        "candles": f"{source.name}: {', '.join(source.symbols())}",
        "clock": f"{start:%Y-%m-%d %H:%M} UTC, {speed / 60:.4g} h per minute, candles until {end:%Y-%m-%d}",
        "schedules": str(file),
        "isolation": f"versions run in {available()}",
        "running": ", ".join(f"{child.name} (pid {child.pid}, log {child.log})" for child in children),
    }.items():
        echo(f"{what:<12}{value}")
    echo(f"In another shell:  export ROLLOUT_DATABASE_URL='{shown}'; rollout status fib_rsi; rollout alerts list")
    if login:
        echo(f"    and for Prefect:  export PREFECT_API_URL={api_url} PREFECT_API_AUTH_STRING=$(cat '{secret}')")
    echo("Press Ctrl-C to stop. Changes and alerts, in market time:")
    while not stop.wait(_POLL_S):
        for child in children:
            child.check()
        activity.print_new(echo)
    echo("Stopping …")


def _free_port(wanted: int | None, stack: ExitStack) -> int:
    """Return the port *wanted*, or any free one. Another server on it would look healthy, and get the password."""
    found = keep_port(stack, wanted or 0)
    if wanted not in (None, found):
        raise InvalidSetting("port", wanted, "a port that no other program uses")
    return found


def _ui_line(ui: str, login: Mapping[str, str]) -> str:
    """Return the address of the UI, which also signs in if the server is our own."""
    if not login:
        return ui
    return f"{ui}{OPEN}#{b64encode(login['PREFECT_API_AUTH_STRING'].encode()).decode()}"


def _own_prefect(state: Path, port: int) -> dict[str, str]:
    """Return the environment for a private Prefect server, without the user's own PREFECT_ variables."""
    return {
        **_without("PREFECT_", _REPLAY),
        **_PRIVATE,
        "PREFECT_HOME": str(state / "prefect"),
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{state / 'prefect' / 'prefect.db'}",
        "PREFECT_SERVER_API_HOST": HOST,
        "PREFECT_SERVER_API_PORT": str(port),
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": ",".join(addresses(port, None)),
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": _LEASES,
        **_SMALL,
        **_IDLE,
    }


def _without(*prefixes: str) -> dict[str, str]:
    """Return the environment without the variables that begin with one of *prefixes*."""
    return {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}


def _own_database(state: Path) -> str:
    return f"sqlite:///{state / 'rollout.db'}"


def _open(settings: Settings, state: Path, stack: ExitStack) -> Engine:
    """Return the database, upgraded.

    Raises:
        InvalidSetting: it may serve users, and all its processes would use the clock of the replay.
    """
    engine = settings.open_engine()
    stack.callback(engine.dispose)
    upgrade(engine)
    made = settings.database_url == _own_database(state) or read_clock(engine) is not None
    if not made and all_versions(engine) and not read_events(engine, actor=SEEDER, limit=1):
        allowed = "a new database, or one that `rollout up` has made, since the clock of the replay is stored in it"
        raise InvalidSetting("database_url", address(engine), allowed)
    return engine


def _set_clock(engine: Engine, clock: ReplayClock, stack: ExitStack) -> None:
    """Store the clock, for every process that opens the database. It stands still once the flows have ended."""
    start_clock(engine, clock)
    stack.callback(lambda: stop_clock(engine, clock, real_now=datetime.now(UTC)))


def _variables(settings: Settings) -> dict[str, str]:
    """Return the settings as environment variables, for the flows."""
    prefix = settings.model_config["env_prefix"].upper()
    inherited = {  # from the environment: a dump masks secrets, and the server alone needs the others
        "prometheus_header",
        "oanda_token",
        "alert_urls",
        "console_owner_header",
        "console_proxies",
        "replay_from",  # and of the clock: the children find it in the database
        "replay_started_at",
        "replay_speed",
    }
    values = settings.model_dump(mode="json", exclude_none=True, exclude=inherited)
    return {f"{prefix}{name.upper()}": str(value) for name, value in values.items()}


def _api_environment(stack: ExitStack) -> dict[str, str]:
    """Return the environment variables that the API needs, or an empty mapping if it is not installed.

    Without a key in the user's environment the API runs in development mode.
    """
    if any(importlib.util.find_spec(package) is None for package in _API_NEEDS):
        return {}
    found = {
        "ROLLOUT_API_HOST": HOST,
        "ROLLOUT_API_PORT": os.environ.get("ROLLOUT_API_PORT") or str(keep_port(stack, _API_PORT)),
    }
    return found if any(os.environ.get(key) for key in _API_KEYS) else found | {"ROLLOUT_API_DEVELOPMENT": "1"}


def _api_line(api: Mapping[str, str]) -> str:
    if not api:
        return "not installed: pip install 'strategy-rollout[api]'"
    url = f"http://{HOST}:{api['ROLLOUT_API_PORT']}"
    token = "ROLLOUT_API_DEVELOPMENT=1 rollout token --name you" if "ROLLOUT_API_DEVELOPMENT" in api else "your own"
    return f"{url}/docs, token: {token}"


def _console_line(api: Mapping[str, str], settings: Settings) -> str:
    """Return the address of the console, which also logs in if the key of the API can sign tokens."""
    if not api:
        return "not installed, as the API"
    from strategy_core.api.auth import issue_token, login_link
    from strategy_core.api.settings import ApiSettings, read_api_settings

    url = str(settings.console_url)
    try:
        keys = ApiSettings(development=True) if "ROLLOUT_API_DEVELOPMENT" in api else read_api_settings()
        token, _ = issue_token(keys, name=_login_name(), now=datetime.now(UTC))
    except RolloutError:  # its key only verifies tokens
        return url
    return f"{login_link(url, token)}  (logs in for 12 h)"


def _login_name() -> str:
    """Return the name for the audit trail of whoever runs this."""
    try:
        return check_owner_name(getpass.getuser())
    except (KeyError, OSError, RolloutError):  # a container may know no name for its user
        return "owner"


def _wait_until_healthy(api_url: str, children: Sequence[Child], stop: threading.Event) -> None:
    for _ in range(int(_HEALTHY_WITHIN_S / _POLL_S)):
        for child in children:
            child.check()
        if _healthy(f"{api_url}/health") or stop.wait(_POLL_S):
            return
    if children:
        raise ChildEnded(children[0].last_words(f"is not healthy after {_HEALTHY_WITHIN_S:g} s"))
    raise InvalidSetting("PREFECT_API_URL", api_url, "the address of a running Prefect server")


def _healthy(url: str) -> bool:
    try:
        with urlopen(url, timeout=5) as answer:  # noqa: S310  the URL is our own, or from PREFECT_API_URL
            return bool(answer.status == 200)
    except (URLError, OSError):
        return False


@contextmanager
def _stop_requested() -> Iterator[threading.Event]:
    """Yield an event that Ctrl-C or SIGTERM sets, instead of their usual effect."""
    stop = threading.Event()

    def request(_signal: int, _frame: FrameType | None) -> None:
        stop.set()

    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class ActivityFeed:
    """Prints changes and alerts as they appear in the database."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        newest = read_activity(engine, limit=1)
        self._event = max((event.id or 0 for event in newest.events), default=0)
        self._alert = max((alert.id or 0 for alert in newest.alerts), default=0)

    def print_new(self, echo: Callable[[str], None]) -> None:
        """Print what is new since the last call, oldest first. An alert replaces the change that raised it."""
        found = read_activity(self._engine, after_event=self._event, after_alert=self._alert)
        events, alerts = found.events, found.alerts
        reported = {(alert.at, alert.rollout_id) for alert in alerts if alert.rollout_id is not None}
        changes = [
            (event.at, 0, f"{event.strategy_name} {event.version}  {event.action.replace('_', ' ')}: {event.reason}")
            for event in events
            if (event.at, event.rollout_id) not in reported
        ]
        raised = [(alert.at, 1, f"alert {alert.id}, {alert.severity}: {alert.text}") for alert in alerts]
        for at, _, line in sorted([*changes, *raised], key=lambda each: each[:2]):
            echo(f"{at:%Y-%m-%d %H:%M}  {line.removesuffix(': ')}")
        self._event = max([self._event, *(event.id or 0 for event in events)])
        self._alert = max([self._alert, *(alert.id or 0 for alert in alerts)])
