"""An installation of compose.yaml under load: the delay of every minute and of every owner's form, and what it costs.

`python -m tests.benchmarks.soak FOLDER --minutes 60 --hog-from 25 --hog 10` prints the figures of the page on what it
costs. Twenty symbols, ten versions in five rollouts, a new candle each minute, a form every ten seconds.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import signal
import statistics
import subprocess
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx

from strategy_core.domain.audit import Command
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.plan import Plan
from strategy_core.isolation.pool import WorkerPool
from strategy_core.market.open import open_source
from strategy_core.market.source import ReplayClock
from strategy_core.market.synthetic import SyntheticSource
from strategy_core.services.database import start_clock
from strategy_core.services.rollouts import start_rollout
from strategy_core.services.score import score_outcomes
from strategy_core.services.shadow import run_shadow
from strategy_core.services.versions import register_version
from strategy_core.store.engine import open_database
from tests.builders import GOLD, OWNER
from tests.deployments.composed import Installation, installed
from tests.endpoint import Endpoint, serving
from tests.services.outbox import ids, url_of

DAYS = 200
STRATEGIES = tuple(f"fib_{letter}" for letter in "abcde")
SPEED = 60.0  # a candle of an hour each minute
HISTORY = 2_000  # candles before the versions are registered
SHADOW = 48
FORM_EVERY_S = 10.0
FINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
TICKS_S, PAGE = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")


def write_candles(folder: Path, symbols: int) -> str:
    """Write a file of candles for each symbol, and return the feed."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(symbols):
        source = SyntheticSource((GOLD,), seed=seed, days=DAYS)
        source.candles(GOLD, closed_by=datetime(2200, 1, 1, tzinfo=UTC)).to_csv(folder / f"METAL{seed:02}.csv")
    return str(folder)


def prepare(url: str, feed: str) -> None:
    """Register ten versions, and start five rollouts that a replay of one candle a minute goes on with."""
    engine = open_database(url)
    market = open_source(feed)
    opened = market.candles(market.symbols()[0], closed_by=datetime(2200, 1, 1, tzinfo=UTC)).index
    registered, started = (opened[at].to_pydatetime() for at in (HISTORY, HISTORY + SHADOW))
    for name in STRATEGIES:
        for version, config, status in (("1", {}, Status.ACTIVE), ("2", {"fib_lookback_bars": 60}, Status.SHADOW)):
            register_version(
                engine,
                Command(OWNER, registered, "soak"),
                market,
                strategy_name=name,
                version=version,
                config=config,
                entry_point="fib_rsi",
                symbols=list(market.symbols()),
                timeframe="1h",
                status=status,
            )
    with WorkerPool() as workers:
        run_shadow(engine, market, workers, now=started, catch_up=SHADOW)
    score_outcomes(engine, market, now=started)
    for name in STRATEGIES:
        start_rollout(
            engine,
            Command(OWNER, started, "soak"),
            strategy_name=name,
            version="2",
            plan=Plan().at_speed(SPEED, timedelta(hours=1)),
        )
    start_clock(engine, ReplayClock(datetime.now(UTC), started, SPEED))
    engine.dispose()


def usage(processes: Mapping[str, "subprocess.Popen[bytes]"]) -> dict[str, tuple[float, float]]:
    """Return the CPU seconds so far, ended children included, and the resident MB of each service."""
    service = {each.pid: name for name, each in processes.items()}
    parents: dict[int, int] = {}
    found: dict[int, tuple[float, float]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended
            rest = stat.read_text().rpartition(") ")[2].split()
            parents[int(stat.parent.name)] = int(rest[1])
            found[int(stat.parent.name)] = (sum(map(int, rest[11:15])) / TICKS_S, int(rest[21]) * PAGE / 1e6)
    total: dict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
    for pid, (seconds, resident) in found.items():
        above = pid
        while above not in service and above > 1:
            above = parents.get(above, 0)
        if above in service:
            before = total[service[above]]
            total[service[above]] = (before[0] + seconds, before[1] + resident)
    return dict(total)


def cost(before: Mapping[str, tuple[float, float]], after: Mapping[str, tuple[float, float]], seconds: float) -> None:
    print(f"\n| process | core | MB |\n|---|---|---|  ({seconds:.0f} s)")
    cores = {name: (after[name][0] - before[name][0]) / seconds for name in after if name in before}
    for name, core in cores.items():
        print(f"| {name} | {core:.3f} | {after[name][1]:.0f} |")
    print(f"| all | {sum(cores.values()):.3f} | {sum(resident for _, resident in after.values()):.0f} |", flush=True)


class Owner:
    """Posts a form every few seconds to Prefect, as its UI does, and finds how each ended."""

    def __init__(self, prefect: httpx.Client) -> None:
        self.prefect = prefect
        found = prefect.post("/deployments/filter", json={}).raise_for_status().json()
        self.deployments = {each["name"]: each["id"] for each in found}
        self.forms = itertools.cycle(
            (name, strategy) for strategy in STRATEGIES for name in ("pause", "resume", "rollback", "start-canary")
        )
        self.posted: dict[str, tuple[str, float]] = {}

    def post(self) -> None:
        name, strategy = next(self.forms)
        given = {"strategy_name": strategy, "owner": "ann", "reason": "soak"}
        if name == "start-canary":
            given |= {"version": "2", "override_reason": "soak"}
        path = f"/deployments/{self.deployments[name]}/create_flow_run"
        began = time.time()
        run = self.prefect.post(path, json={"parameters": given}).raise_for_status().json()
        self.posted[run["id"]] = (name, began)

    def runs(self, **wanted: Any) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        while True:
            page = {"flow_runs": wanted, "sort": "EXPECTED_START_TIME_ASC", "limit": 200, "offset": len(found)}
            new = self.prefect.post("/flow_runs/filter", json=page).raise_for_status().json()
            found += new
            if len(new) < 200:
                return found

    def answered(self) -> list[tuple[str, str, float, str]]:
        """Return name, state, seconds from the post to the final state, and the line of every form."""
        done = []
        for run_id, (name, began) in self.posted.items():
            state = self.prefect.get(f"/flow_runs/{run_id}").raise_for_status().json()["state"]
            at = moment(state["timestamp"]).timestamp() if state["type"] in FINAL else time.time()
            done.append((name, state["type"], at - began, state.get("message") or ""))
        return done

    def backlog(self) -> Counter[str]:
        """Return the runs that are due and not ended, by state."""
        now = (datetime.now(UTC) - timedelta(seconds=5)).isoformat()
        due = self.runs(
            expected_start_time={"before_": now},
            state={"type": {"any_": ["SCHEDULED", "PENDING", "RUNNING", "CANCELLING"]}},
        )
        return Counter(f"{each['state']['name']} {each['name'][:20]}" for each in due)


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def percentiles(values: Sequence[float]) -> str:
    if len(values) < 2:
        return f"{len(values)}: {values}"
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return f"{len(values)}: p50 {cuts[49]:.1f} s, p95 {cuts[94]:.1f} s, p99 {cuts[98]:.1f} s, worst {max(values):.1f} s"


def minutes_of(owner: Owner, deployment: str, began: datetime, ended: datetime) -> list[float]:
    """Return for each due minute how many seconds later a run of it began that was not skipped.

    A run that came later than the next minute does the work of both.
    """
    runs = owner.runs(
        expected_start_time={"after_": began.isoformat(), "before_": ended.isoformat()},
        deployment_id={"any_": [owner.deployments[deployment]]},
    )
    worked = sorted(
        (moment(each["start_time"]), moment(each["expected_start_time"]))
        for each in runs
        if each["start_time"] and each["state"]["name"] == "Completed"
    )
    late = []
    for each in runs:
        due = moment(each["expected_start_time"])
        first = next((start for start, expected in worked if expected >= due), None)
        late.append(((first or datetime.now(UTC)) - due).total_seconds())
    return late


def burn(until: float) -> None:
    while time.time() < until:
        sum(range(10_000))


def soak(folder: Path, minutes: float, hog_from: float, hog: float, symbols: int) -> None:
    with serving() as receiver:
        more = {"ROLLOUT_ALERT_URLS": url_of(receiver)}
        feed = write_candles(folder / "candles", symbols)
        with installed(folder, feed, lambda url: prepare(url, feed), **more) as made, made.prefect() as prefect:
            print(f"started {datetime.now(UTC):%H:%M:%S}", flush=True)
            _soak(made, Owner(prefect), receiver, minutes, hog_from, hog)


def _soak(made: Installation, owner: Owner, receiver: Endpoint, minutes: float, hog_from: float, hog: float) -> None:
    time.sleep(90)  # the first minutes catch up
    before, since = usage(made.processes), time.time()
    time.sleep(min(240.0, minutes * 60 / 4))
    cost(before, usage(made.processes), time.time() - since)
    began = datetime.now(UTC)
    start = time.time()
    hogs: list[multiprocessing.Process] = []
    hogged = checked = False
    while (passed := time.time() - start) < minutes * 60:
        if not hogged and passed >= hog_from * 60:
            hogged, until = True, time.time() + hog * 60
            hogs = [multiprocessing.Process(target=burn, args=(until,), daemon=True) for _ in range(4)]
            for each in hogs:
                each.start()
            print(f"{passed:.0f} s: four processes burn two cores for {hog:g} min", flush=True)
        if hogged and not checked and passed >= (hog_from + hog) * 60 + 120:
            checked = True
            print(f"{passed:.0f} s: backlog two minutes after: {dict(owner.backlog())}", flush=True)
        try:
            owner.post()
        except httpx.HTTPError as error:
            print(f"{passed:.0f} s: a form could not be posted: {error!r}", flush=True)
        time.sleep(FORM_EVERY_S)
    ended = datetime.now(UTC)
    time.sleep(60)
    for name in ("ramp-tick", "shadow-run", "sample-metrics", "deliver-alerts"):
        print(f"{name:<16} {percentiles(minutes_of(owner, name, began, ended))}")
    forms = owner.answered()
    print(f"forms            {percentiles([seconds for _, _, seconds, _ in forms])}")
    print(f"rollback         {percentiles([seconds for name, _, seconds, _ in forms if name == 'rollback'])}")
    print(Counter((name, state) for name, state, _, _ in forms))
    for name, state, seconds, line in forms:
        if seconds > 30 or state != "COMPLETED":
            print(f"  {name} {state} {seconds:.1f} s: {line}")
    print(f"messages {len(ids(receiver))}, twice: {[each for each, n in Counter(ids(receiver)).items() if n > 1]}")
    print(made.run("rollout", "audit", "verify"))
    states = Counter(each["state"]["name"] for each in owner.runs(expected_start_time={"before_": ended.isoformat()}))
    print(json.dumps(states))


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__)
    given.add_argument("folder", type=Path)
    given.add_argument("--minutes", type=float, default=60.0)
    given.add_argument("--hog-from", type=float, default=25.0)
    given.add_argument("--hog", type=float, default=10.0)
    given.add_argument("--symbols", type=int, default=20)
    found = given.parse_args()
    found.folder.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that all that was started is ended
    soak(found.folder, found.minutes, found.hog_from, found.hog, found.symbols)


if __name__ == "__main__":
    main()
