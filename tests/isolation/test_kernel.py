"""The system-call filter, interpreted as the kernel would, for both processor families."""

import os

import pytest

from strategy_core.isolation.sandbox import ABSENT as NO_SUCH_CALL
from strategy_core.isolation.sandbox import (
    ALLOW,
    ARGUMENTS_AT,
    CALLS,
    CLONE_THREAD,
    PR_SET_PDEATHSIG,
    REFUSE,
    X32,
    Calls,
    _filter,
)

OWN_PID = 4321


def run(calls: Calls, number: int, *arguments: int, arch: int | None = None) -> int:
    """Interpret the filter for one system call and return its verdict."""
    data = {0: number, 4: calls.audit_arch if arch is None else arch}
    data |= {ARGUMENTS_AT + 8 * i: value for i, value in enumerate(arguments)}
    steps = _filter(calls, OWN_PID)
    at = loaded = 0
    while True:
        code, when_true, when_false, value = steps[at]
        at += 1
        if code == 0x06:
            return value
        if code == 0x20:
            loaded = data[value]
        else:
            test = {0x15: loaded == value, 0x35: loaded >= value, 0x45: bool(loaded & value)}[code]
            at += when_true if test else when_false


@pytest.fixture(params=sorted(CALLS))
def calls(request: pytest.FixtureRequest) -> Calls:
    return CALLS[request.param]


def test_files_may_be_opened_to_read_and_in_no_other_way(calls: Calls) -> None:
    for number, flags_argument in calls.opens.items():
        for flags, verdict in [(os.O_RDONLY | os.O_CLOEXEC, ALLOW), (os.O_WRONLY, REFUSE), (os.O_CREAT, REFUSE)]:
            assert run(calls, number, *[0] * flags_argument, flags) == verdict


def test_threads_may_start_and_processes_may_not(calls: Calls) -> None:
    assert run(calls, calls.clone, CLONE_THREAD | 0x100) == ALLOW
    assert run(calls, calls.clone, 17) == REFUSE


def test_a_version_may_signal_itself_alone(calls: Calls) -> None:
    for number in calls.signals:
        assert run(calls, number, OWN_PID) == ALLOW
        assert run(calls, number, 1) == REFUSE


def test_limits_may_be_read_and_not_set(calls: Calls) -> None:
    assert run(calls, calls.limits, 0, 7, 0) == ALLOW
    assert run(calls, calls.limits, 0, 7, 0x7F00) == REFUSE


def test_no_version_may_ask_to_outlive_its_parent(calls: Calls) -> None:
    assert run(calls, calls.control, PR_SET_PDEATHSIG, 0) == REFUSE


def test_listed_calls_are_refused_and_unreadable_ones_absent(calls: Calls) -> None:
    assert {run(calls, number) for number in calls.refused} == {REFUSE}
    assert {run(calls, number) for number in calls.absent} == {NO_SUCH_CALL}


def test_another_numbering_is_refused_whole(calls: Calls) -> None:
    """A 32-bit call's numbers mean other calls: read by the 64-bit list, a write could pass for a read."""
    assert run(calls, 3, arch=0x40000003) == REFUSE
    assert run(calls, X32 | 1) == REFUSE
