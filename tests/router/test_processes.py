"""Forked servers, many threads, an event loop: each gets answers of this moment, and nobody waits."""

import asyncio
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from sqlalchemy import Engine

from strategy_core import Router
from strategy_core.domain.audit import Command
from strategy_core.services.canary import activate_canary, update_canary_percent
from strategy_core.services.rollback import roll_back
from tests.builders import MONDAY, OWNER
from tests.router.conftest import until
from tests.router.prefork import CHILDREN

THREADS, CHANGES = 8, 60
ROOT = Path(__file__).parents[2]


@pytest.mark.full
def test_each_child_of_a_forking_server_learns_of_changes_itself(canary: Engine, database_url: str) -> None:
    update_canary_percent(canary, Command(OWNER, MONDAY), strategy_name="fib_rsi", percent=100)
    command = [sys.executable, "-m", "tests.router.prefork", database_url]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        assert server.stderr is not None
        ready = [server.stdout.readline() for _ in range(CHILDREN + 1)]

        roll_back(canary, Command(OWNER, MONDAY, "odd fills"), strategy_name="fib_rsi")
        said = server.stdout.read()

        assert ready == ["sees 2\n"] * (CHILDREN + 1)
        assert said == "sees 3 1\n" * (CHILDREN + 1)
        assert server.stderr.read() == ""
    assert server.returncode == 0


@pytest.mark.full
def test_every_answer_was_right_at_some_moment_of_its_asking(canary: Engine, database_url: str) -> None:
    """The percent goes up and down; a user's answer may only be one that a state between asking and answer gives."""
    users = [f"user_{i}" for i in range(64)]
    wrong: list[str] = []
    seen: list[int] = []
    done = threading.Event()
    start = threading.Barrier(THREADS + 1)

    with Router(database_url) as router:
        inside = {user for user in users if router.explain(user, "fib_rsi").bucket < 2_500}

        def hammer() -> None:
            start.wait()
            generation = 0
            while not done.is_set():
                for user in users:
                    version = router.version_for(user, "fib_rsi")
                    if version not in ("1", "2") or (version == "2" and user not in inside):
                        wrong.append(f"{user} got {version}")
                before, assigned, after = _generation(router), router.assign(users, "fib_rsi"), _generation(router)
                if before == after and set(_of(assigned, users, "2")) != (inside if before % 2 else set()):
                    wrong.append(f"generation {before}: {assigned}")
                if before < generation:
                    wrong.append(f"generation {before} after {generation}")
                generation = after
                time.sleep(0.001)  # eight threads that never rest would leave the changes no time
            seen.append(generation)

        threads = [threading.Thread(target=hammer) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        start.wait()
        for change in range(CHANGES):
            update_canary_percent(canary, Command(OWNER, MONDAY), strategy_name="fib_rsi", percent=25 * (change % 2))
        until(lambda: router.generation("fib_rsi") == CHANGES + 1)
        done.set()
        for thread in threads:
            thread.join()

    assert wrong == []
    assert len(seen) == THREADS


def _generation(router: Router) -> int:
    return router.generation("fib_rsi")


def _of(assigned: list[str], users: list[str], version: str) -> list[str]:
    return [user for user, its in zip(users, assigned, strict=True) if its == version]


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_in_an_event_loop_nothing_waits_for_the_database(canary: Engine, database_url: str) -> None:
    """While a stranger holds the tables, nothing can be read: answers come all the same."""

    async def ask() -> list[str]:
        async with await asyncio.to_thread(Router, database_url) as router:
            with canary.begin() as stranger:
                stranger.exec_driver_sql("LOCK TABLE strategy, strategy_version, canary_config")
                answers = [router.version_for("user_1", "fib_rsi") for _ in range(10_000)]
            await asyncio.to_thread(activate_again)
            await asyncio.to_thread(until, lambda: router.version_for("user_1", "fib_rsi") == "2")
            return answers

    def activate_again() -> None:
        roll_back(canary, Command(OWNER, MONDAY, "odd fills"), strategy_name="fib_rsi")
        activate_canary(
            canary,
            Command(OWNER, MONDAY, override_reason="mended"),
            strategy_name="fib_rsi",
            version="2",
            rollout_percent=100,
        )

    assert set(asyncio.run(ask())) == {"1"}
