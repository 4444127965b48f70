"""The services of compose.yaml as processes of this machine: their commands and settings, with addresses on loopback.

There is no container, so what only an image or a network of Docker gives is not shown here. PostgreSQL and Redis come
from Debian's packages: the PostgreSQL of the other tests has no `pg_trgm`, which Prefect needs.
"""

import os
import pwd
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
import yaml

from tests.api.processes import free_port

FOLDER = Path(__file__).parent.parent.parent / "deployments"
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"]
BINARIES = max(Path("/usr/lib/postgresql").glob("*/bin"), default=Path("/usr/lib/postgresql"))
ONCE = ("upgrade", "prefect-upgrade", "deploy")
LASTING = ("prefect", "prefect-services", "worker", "maintainer", "api", "exporter")
PATIENCE_S = 240.0
_VARIABLE = re.compile(r"(?<!\$)\$\{(\w+)(?::([-?])([^}]*))?\}")
_ADDRESS = re.compile(r"\b(?:postgresql|redis|prefect|api|exporter|127\.0\.0\.1):(\d+)\b")
_PORTS = {"postgresql": 5432, "redis": 6379, "prefect": 4200, "api": 8321, "exporter": 9464, "maintainer": 8080}
T = TypeVar("T")


def until(found: Callable[[], T | None], what: str, within_s: float = PATIENCE_S) -> T:
    deadline = time.monotonic() + within_s
    while (answer := found()) is None:
        assert time.monotonic() < deadline, f"{what}: not within {within_s:g} s"
        time.sleep(0.2)
    return answer


@dataclass
class Installation:
    """What `docker compose up` starts, except for Prometheus, Alertmanager and Grafana.

    Attributes:
        feed: source of candles.
        more: settings of a `.env` file, in addition to those that it must have.
    """

    folder: Path
    feed: str
    more: Mapping[str, str] = field(default_factory=dict)
    processes: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)

    def __post_init__(self) -> None:
        example = (FOLDER / ".env.example").read_text()
        self.ports = {name: free_port() for name in _PORTS}
        self.settings = {name: secrets.token_hex(24) for name in re.findall(r"^([A-Z_]+)=$", example, re.MULTILINE)}
        self.settings |= {"ROLLOUT_FEED": self.feed, "PREFECT_AUTH": f"owner:{secrets.token_hex(16)}", **self.more}
        self.cluster = Path(tempfile.mkdtemp(prefix="cluster-", dir="/tmp"))  # sockets need a short path

    def start(self, prepare: Callable[[str], None] = lambda _url: None) -> None:
        """Start all, in the order in which they depend on each other.

        Args:
            prepare: called with the address of the platform's empty database, before anything uses it.
        """
        self.make_cluster()
        self.start_redis()
        self.once("upgrade")
        prepare(self.database_url)
        self.once("prefect-upgrade")
        self.start_services("prefect")
        self.start_services("prefect-services")
        self.once("deploy")
        self.start_services("worker", "maintainer", "api", "exporter")

    def stop(self) -> None:
        """End every process that was started here, by its id."""
        for name in (*reversed(LASTING), "redis", "postgresql"):
            process = self.processes.pop(name, None)
            if process is not None and process.poll() is None:
                process.send_signal(signal.SIGINT if name == "postgresql" else signal.SIGTERM)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(30)
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait(10)
        shutil.rmtree(self.cluster, ignore_errors=True)

    def kill(self, name: str) -> None:
        """End a service and all of its processes at once, as a container ends when its first process is killed."""
        process = self.processes.pop(name)
        for pid in (process.pid, *descendants(process.pid)):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait(10)

    def start_ended(self) -> list[str]:
        """Start the services that have ended, as `restart: unless-stopped` does, and return their names at once."""
        ended = [name for name in LASTING if name not in self.processes or self.processes[name].poll() is not None]
        for name in ended:
            self._spawn(name, self.command(name), self.environment(name))
        return ended

    def make_cluster(self) -> None:
        user = {"user": "nobody"} if os.getuid() == 0 else {}  # PostgreSQL refuses to run as root
        if user:
            os.chown(self.cluster, pwd.getpwnam("nobody").pw_uid, -1)
        data = self.cluster / "data"
        command = [str(BINARIES / "initdb"), "--auth=trust", "--username=postgres", "--no-sync"]
        command += [f"--pgdata={data}"]
        subprocess.run(command, check=True, capture_output=True, **user)  # type: ignore[call-overload]
        self.start_postgresql()
        environment = self.environment("postgresql") | {
            "PGHOST": "127.0.0.1",
            "PGPORT": str(self.ports["postgresql"]),
            "POSTGRES_USER": "postgres",
            "POSTGRES_DB": "postgres",
            "PATH": f"{BINARIES}:{os.environ['PATH']}",
        }
        subprocess.run(["sh", FOLDER / "containers" / "roles.sh"], env=environment, check=True, capture_output=True)

    def start_postgresql(self) -> None:
        if "postgresql" in self.processes:
            return
        command = [str(BINARIES / "postgres"), "-D", str(self.cluster / "data"), "-h", "127.0.0.1"]
        command += ["-p", str(self.ports["postgresql"]), "-k", str(self.cluster)]
        self._spawn("postgresql", command, dict(os.environ), user="nobody" if os.getuid() == 0 else None)
        ready = [str(BINARIES / "pg_isready"), "-h", "127.0.0.1", "-p", str(self.ports["postgresql"])]
        until(
            lambda: subprocess.run(ready, capture_output=True, check=False).returncode == 0 or None,
            "PostgreSQL answers",
        )

    def stop_postgresql(self) -> None:
        """Stop it as `docker compose stop` does: its clients are cut off."""
        process = self.processes.pop("postgresql")
        process.send_signal(signal.SIGINT)
        process.wait(60)

    def start_redis(self) -> None:
        folder = self.folder / "redis"
        folder.mkdir(exist_ok=True)
        (shell,) = [each for each in SERVICES["redis"]["command"] if "redis-server" in each]
        environment = self.environment("redis") | {"PATH": os.environ["PATH"]}
        more = f" --bind 127.0.0.1 --port {self.ports['redis']} --dir {folder}"
        self._spawn("redis", ["sh", "-c", shell.replace("$$", "$") + more], environment)
        ping = ["redis-cli", "-h", "127.0.0.1", "-p", str(self.ports["redis"]), "ping"]
        until(
            lambda: (
                True
                if b"PONG" in subprocess.run(ping, env=environment, capture_output=True, check=False).stdout
                else None
            ),
            "Redis answers",
        )

    def start_services(self, *names: str) -> None:
        """Start services that last, and wait until those are healthy whose check asks an address."""
        for name in names:
            self._spawn(name, self.command(name), self.environment(name))
        for name in names:
            self.await_health(name)

    def await_health(self, name: str) -> None:
        check = " ".join(SERVICES[name].get("healthcheck", {}).get("test", []))
        if address := re.search(r"'(http://[^']+)'", check):
            url = self._local(address[1], name)
            until(lambda: True if answers(url) else None, f"{name} is healthy")

    def once(self, name: str) -> str:
        """Run a service that ends, and return its output."""
        return self.run(*self.command(name), service=name)

    def run(self, *command: str, service: str = "worker", **more: str) -> str:
        """Run a command with the settings of a service, as `docker compose run` does, and return its output."""
        given = self.environment(service) | more
        done = subprocess.run(
            command, env=given, cwd=self.home(service), capture_output=True, text=True, check=False, timeout=PATIENCE_S
        )
        assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
        return done.stdout

    def command(self, name: str) -> list[str]:
        found = [self._local(each, name) for each in SERVICES[name]["command"]]
        found = [str(self.ports[name]) if each == str(_PORTS.get(name)) else each for each in found]
        return [str(Path(sys.executable).parent / found[0]), *found[1:]]

    def environment(self, name: str) -> dict[str, str]:
        """Return the settings of a service, and nothing of this process's but the path of programs."""
        programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        found = {"PATH": programs, "HOME": str(self.home(name)), "USER": "container", "PYTHONUNBUFFERED": "1"}
        for key, value in SERVICES[name].get("environment", {}).items():
            if value is None and key not in self.settings:
                continue
            text = self._local(str(value), name)
            found[key] = self.settings[key] if value is None else _VARIABLE.sub(self._value, text)
        if name == "maintainer":
            found |= {"PREFECT_WORKER_WEBSERVER_PORT": str(self.ports[name])}
        return found

    def home(self, name: str) -> Path:
        (self.folder / name).mkdir(parents=True, exist_ok=True)
        return self.folder / name

    @property
    def database_url(self) -> str:
        return self.environment("worker")["ROLLOUT_DATABASE_URL"]

    @property
    def api(self) -> str:
        return f"http://127.0.0.1:{self.ports['api']}/api/v1/strategy"

    def prefect(self) -> httpx.Client:
        """Return a client of the Prefect server, signed in."""
        login = b64encode(self.settings["PREFECT_AUTH"].encode()).decode()
        url = f"http://127.0.0.1:{self.ports['prefect']}/api"
        return httpx.Client(base_url=url, timeout=60, headers={"Authorization": f"Basic {login}"})

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def _value(self, match: "re.Match[str]") -> str:
        name, how, default = match.groups()
        if how == "?" or name in self.settings:
            return self.settings[name]
        return default or ""

    def _local(self, text: str, name: str = "worker") -> str:
        """Return *text* of compose.yaml with addresses on loopback and paths in this installation's folder."""
        at = {str(port): self.ports[service] for service, port in _PORTS.items()}
        text = _ADDRESS.sub(lambda found: f"127.0.0.1:{at.get(found[1], found[1])}", text)
        return text.replace("/tmp/", f"{self.home(name)}/").replace("0.0.0.0", "127.0.0.1")

    def _spawn(self, name: str, command: list[str], environment: dict[str, str], user: str | None = None) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                command,
                env=environment,
                cwd=self.home(name) if user is None else "/",
                stdout=log,
                stderr=log,
                start_new_session=True,
                user=user,
            )


def descendants(pid: int) -> list[int]:
    """Return the processes that a process has started, and those that these have started."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = {int(child): int(parent) for child, parent in map(str.split, listed.splitlines())}
    found = [pid]
    for each in found:
        found += [child for child, parent in parents.items() if parent == each]
    return found[1:]


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).status_code == 200
    except httpx.TransportError:
        return False


@contextmanager
def installed(
    folder: Path, feed: str, prepare: Callable[[str], None] = lambda _url: None, **more: str
) -> Iterator[Installation]:
    """Start an installation, and end it."""
    with ExitStack() as stack:
        made = Installation(folder, feed, more)
        stack.callback(made.stop)
        made.start(prepare)
        yield made
