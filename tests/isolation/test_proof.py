from pathlib import Path

from strategy_core.isolation.probe import NOWHERE
from strategy_core.isolation.selftest import prove_isolation

UNREPORTED = {
    "connect to a local service",  # the kernel's refusal: asyncio needs such sockets in pairs
    "write a file by native code",
    "open a socket by native code",
    "fork by native code",
    "signal a process by native code",
    "find a secret",
}


def test_every_door_is_shut_and_each_try_in_python_is_reported() -> None:
    attempts = prove_isolation()

    assert len(attempts) == 26
    assert [attempt.what for attempt in attempts if not attempt.refused] == []
    assert {attempt.what for attempt in attempts if not attempt.reported} == UNREPORTED
    assert list(Path(NOWHERE).parent.glob("rollout-probe-*")) == []
