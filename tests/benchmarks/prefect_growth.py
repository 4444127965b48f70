"""Measure what a flow run adds to Prefect's database, and what a month of runs leaves when old ones are deleted.

Run: python -m tests.benchmarks.prefect_growth FOLDER [RUNS]. It starts a real Prefect server with the settings of
`rollout up`, lets real flow runs go through its API, copies their rows to a month, and deletes what the nightly flow
deletes. The copies have their own ids and times.
"""

import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import httpx

from deployments.up import _own_prefect
from strategy_core.domain.audit import Command
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.plan import Plan
from strategy_core.market.source import ReplayClock
from strategy_core.services.database import open_database, start_clock, upgrade
from strategy_core.services.rollouts import start_rollout
from tests.api.processes import free_port
from tests.builders import MONDAY, OWNER, put_version

A_DAY = 4 * 1_440  # scheduled runs: four flows a minute
DAYS = 30
WARM_UP = 30
COPIED = ("flow_run", "flow_run_state", "log", "events", "event_resources")
EVENTS, EVENT_DAYS = ("events", "event_resources"), 2
OWN_IDS = {"id", "flow_run_id", "state_id", "event_id"}


@contextmanager
def server(folder: Path, port: int) -> Iterator[dict[str, str]]:
    """Run a Prefect server until the block ends. Yield the environment of its clients."""
    (folder / "prefect").mkdir(parents=True, exist_ok=True)
    environment = _own_prefect(folder, port)
    with (folder / "server.log").open("w") as log:
        command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}/api"
    try:
        while not healthy(url):
            assert process.poll() is None, (folder / "server.log").read_text()[-2_000:]
            time.sleep(0.5)
        yield {"PREFECT_API_URL": url, "PREFECT_HOME": str(folder / "prefect")}
    finally:
        process.terminate()
        process.wait(60)


def healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").status_code == 200
    except httpx.TransportError:
        return False


def used_bytes(database: Path) -> int:
    """Return the bytes of all pages in use. Pages of deleted rows are used again by SQLite."""
    with closing(sqlite3.connect(database, timeout=60)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        pages, free, size = (
            connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
        )
    return int((pages - free) * size)


def rows(database: Path) -> Mapping[str, int]:
    with closing(sqlite3.connect(database, timeout=60)) as connection:
        return {name: connection.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in COPIED}


def put_platform(url: str) -> None:
    """Put an open rollout, so that ticks have something to judge and to show."""
    engine = open_database(url)
    upgrade(engine)
    put_version(engine, "1", Status.ACTIVE)
    put_version(engine, "2")
    start_rollout(engine, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="2", plan=Plan())
    start_clock(engine, ReplayClock(datetime.now(UTC), MONDAY + timedelta(hours=1)))
    engine.dispose()


def run_flows(count: int) -> list[UUID]:
    """Run the scheduled flows in this process, as runs of their deployments. Return the deployments' ids."""
    from prefect.client.orchestration import get_client
    from prefect.flow_engine import run_flow

    from flows.alerts import deliver_alerts
    from flows.ramp import ramp_tick, sample_run

    with get_client(sync_client=True) as client:
        flows = {each.name: each for each in (ramp_tick, sample_run, deliver_alerts)}
        made = {
            name: client.create_deployment(
                flow_id=client.create_flow(each), name=name, tags=["rollout", "scheduled"], entrypoint=f"flows.{name}"
            )
            for name, each in flows.items()
        }
        for number in range(count):
            name = list(flows)[number % len(flows)]
            run_flow(flows[name], flow_run=client.create_flow_run_from_deployment(made[name]), return_type="state")
    time.sleep(20)  # the server writes logs and events in batches
    return list(made.values())


def copy_to_a_month(database: Path, runs: int) -> int:
    """Copy the runs, each copy earlier than the one before, until there is a month of them. Return the runs."""
    copies = DAYS * A_DAY // runs
    with closing(sqlite3.connect(database, timeout=60)) as connection:
        connection.execute("PRAGMA foreign_keys = OFF")
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("DELETE FROM flow_run WHERE end_time IS NULL")
        for table in COPIED:
            connection.execute(f"CREATE TEMP TABLE base_{table} AS SELECT * FROM {table}")
        for number in range(1, copies + 1):
            earlier = f"-{number * runs * 86_400 // A_DAY} seconds"
            for table in COPIED:
                if table in EVENTS and number * runs > EVENT_DAYS * A_DAY:
                    continue  # Prefect's vacuum deletes them every hour
                columns = connection.execute(f"PRAGMA table_info({table})").fetchall()
                chosen = ", ".join(copied(name, kind, number) for _, name, kind, *_ in columns)
                connection.execute(f"INSERT INTO {table} SELECT {chosen} FROM base_{table}", {"earlier": earlier})
            connection.commit()
        return int(connection.execute("SELECT count(*) FROM flow_run").fetchone()[0])


def copied(name: str, kind: str, number: int) -> str:
    if name in OWN_IDS:
        return f'CASE WHEN length("{name}") = 36 THEN \'{number:08x}\' || substr("{name}", 9) ELSE "{name}" END'
    if kind in ("DATETIME", "TIMESTAMP"):
        return f"strftime('%Y-%m-%d %H:%M:%f000', \"{name}\", :earlier)"
    return f'"{name}"'


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main(folder: Path, runs: int = 300) -> None:
    ours, database = f"sqlite:///{folder / 'rollout.db'}", folder / "prefect" / "prefect.db"
    with server(folder, free_port()) as client:
        os.environ.update(client | {"ROLLOUT_DATABASE_URL": ours, "ROLLOUT_FEED": "synthetic:GOLD?symbols=1&days=300"})
        put_platform(ours)
        run_flows(WARM_UP)
        began, counted = used_bytes(database), rows(database)
        run_flows(runs)
        each = (used_bytes(database) - began) / runs
        shown = {name: round((count - counted[name]) / runs, 1) for name, count in rows(database).items()}
        say(f"{each:,.0f} bytes a run; rows a run: {shown}; {each * A_DAY / 1e6:.1f} MB a day")
    found = copy_to_a_month(database, runs + WARM_UP)
    say(f"a month: {found:,} runs, {used_bytes(database) / 1e6:,.0f} MB, {rows(database)}")
    clean(folder, database)


def clean(folder: Path, database: Path) -> None:
    """Delete what the nightly flow deletes, beside the vacuum of a server that has just started."""
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from flows.maintain import prune_runs

    with server(folder, free_port()) as client_of, temporary_settings({PREFECT_API_URL: client_of["PREFECT_API_URL"]}):
        began = time.monotonic()
        with get_client(sync_client=True) as client:
            deleted = prune_runs(client, now=datetime.now(UTC), within_s=240.0)
        say(f"{deleted:,} runs deleted in {time.monotonic() - began:.0f} s")
        time.sleep(30)  # logs of the deleted runs
    say(f"afterwards {used_bytes(database) / 1e6:,.0f} MB, {rows(database)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *(int(each) for each in sys.argv[2:]))
