"""Owners who want different things of one strategy at once, through several processes of the API.

In each round all of them send at the same moment, to processes chosen at random: exactly one may win. Between rounds
each does what comes to its mind. What became of it is for the test to judge.
"""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import httpx

STRATEGY = "fib_rsi"
PREFIX = "/api/v1/strategy"
WON = (200, 201)
Wish = Callable[["Owner", int | None], httpx.Response]


@dataclass
class Told:
    """What the owners were answered: how often each status, rounds by their number of winners, and what went wrong."""

    statuses: Counter[int] = field(default_factory=Counter)
    rounds: Counter[tuple[str, int]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


class Owner:
    """One owner with a token, and a connection to each process."""

    def __init__(self, name: str, token: str, addresses: Sequence[str], seed: int, told: Told) -> None:
        self.name = name
        self.random = random.Random(seed)
        self._told = told
        headers = {"Authorization": f"Bearer {token}"}
        self._clients = [httpx.Client(base_url=address + PREFIX, headers=headers, timeout=60) for address in addresses]

    def send(self, method: str, path: str, *, if_match: int | None = None, **how: Any) -> httpx.Response:
        headers = {} if if_match is None else {"If-Match": f'"{if_match}"'}
        if method == "POST":
            headers["Idempotency-Key"] = uuid4().hex
        answer = self.random.choice(self._clients).request(method, path, headers=headers, **how)
        self._told.statuses[answer.status_code] += 1
        if answer.status_code >= 500 or answer.status_code in (401, 403, 422):
            self._told.wrong.append(f"{method} {path}: {answer.status_code} {answer.text[:300]}")
        return answer

    def generation(self) -> int:
        (one,) = self.send("GET", "/routing").json()["strategies"]
        return int(one["generation"])

    def versions(self) -> dict[str, tuple[str, str]]:
        """Return the id and the status of each version."""
        answer = self.send("GET", "/versions", params={"strategy_name": STRATEGY, "limit": 100})
        return {item["version"]: (item["id"], item["status"]) for item in answer.json()["items"]}

    def close(self) -> None:
        for client in self._clients:
            client.close()


def activate(owner: Owner, generation: int | None) -> httpx.Response:
    ids = [key for key, status in owner.versions().values() if status == "retired"]  # shadows are for canaries
    body = {"reason": f"{owner.name} prefers it", "override_reason": "tried anew"}
    return owner.send("POST", f"/versions/{owner.random.choice(ids)}/activate", if_match=generation, json=body)


def ramp(owner: Owner, generation: int | None) -> httpx.Response:
    """Move the canary there is, or make one: to a percent that is hardly ever chosen twice."""
    found = owner.versions()
    canaries = [name for name, (_, status) in found.items() if status == "canary"]
    shadows = [name for name, (_, status) in found.items() if status == "shadow"]
    body = {
        "strategy_name": STRATEGY,
        "version": owner.random.choice(canaries or shadows or list(found)),
        "rollout_percent": owner.random.randrange(1, 10_000) / 100,
        "reason": f"{owner.name} tries",
        "override_reason": "tried anew",
    }
    return owner.send("PATCH", "/rollout", if_match=generation, json=body)


def start(owner: Owner, generation: int | None) -> httpx.Response:
    found = owner.versions()
    shadows = [name for name, (_, status) in found.items() if status == "shadow"]
    version = owner.random.choice(shadows or list(found))  # none: somebody was quicker
    body = {"strategy_name": STRATEGY, "version": version, "override_reason": "tried anew"}
    return owner.send("POST", "/rollouts", if_match=generation, json=body)


def roll_back(owner: Owner, _generation: int | None) -> httpx.Response:
    body = {"strategy_name": STRATEGY, "reason": f"{owner.name} has seen enough"}
    return owner.send("POST", "/rollback", json=body)


def race(owners: Sequence[Owner], told: Told, *, seconds: float) -> None:
    """Let *owners* race until the time is over; what each round must do is one change of the strategy."""
    begun, number = time.monotonic(), 0
    rounds: list[tuple[str, Wish, bool]] = [
        ("start", start, False),
        ("roll back", roll_back, False),
        ("activate", activate, True),
        ("ramp", ramp, True),
        ("ramp", ramp, True),
        ("roll back", roll_back, False),
        ("activate", activate, True),
    ]
    while time.monotonic() - begun < seconds or number % len(rounds):
        name, wish, conditional = rounds[number % len(rounds)]
        if number % len(rounds) == 0:
            roll_back(owners[0], None)  # what is left of the free play, so that a start is possible
        _round(owners, told, name, wish, conditional=conditional)
        number += 1
        if number % len(rounds) == 0:
            _everybody(
                owners, lambda owner: [owner.random.choice((activate, ramp, roll_back))(owner, None) for _ in "abc"]
            )


def _round(owners: Sequence[Owner], told: Told, name: str, wish: Wish, *, conditional: bool) -> None:
    generation = owners[0].generation()
    answers: list[httpx.Response] = []
    _everybody(owners, lambda owner: answers.append(wish(owner, generation if conditional else None)))
    done = [answer for answer in answers if answer.status_code in WON]
    winners = [answer for answer in done if "rolled-back-before" not in answer.headers]  # that one finds it done
    told.rounds[name, len(winners)] += 1
    now = owners[0].generation()
    if len(winners) != 1 or now != generation + 1:
        told.wrong.append(
            f"{name}: {len(winners)} won, generation {generation} -> {now}: {[a.status_code for a in answers]}"
        )
    others = {answer.status_code for answer in answers} - set(WON)
    if others - {409, 412}:
        told.wrong.append(f"{name}: a loser was told {others}")


def _everybody(owners: Sequence[Owner], does: Callable[[Owner], object]) -> None:
    barrier = threading.Barrier(len(owners))
    failed: list[BaseException] = []

    def run(owner: Owner) -> None:
        barrier.wait()
        try:
            does(owner)
        except BaseException as error:  # noqa: BLE001  raised again by whoever waits for all of them
            failed.append(error)

    threads = [threading.Thread(target=run, args=(owner,)) for owner in owners]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
