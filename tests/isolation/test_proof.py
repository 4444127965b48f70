"""The self-test finds every way out shut here, and each one open that a missing layer would leave."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from strategy_core.isolation.probe import TRIES, prove_isolation

NATIVE = {name for name in TRIES if name.endswith("by native code")}
UNREPORTED = NATIVE | {
    "connect to a local service",  # the kernel's refusal: asyncio needs such sockets in pairs
    "read a private file",  # it is not there, nor is it to be locked
    "lock a file",
    "read the parent's environment by a folder's descriptor",
    "open another process's pipe",
    "open the terminal",
    "change another process's priority",  # Python raises no audit event for these three
    "change another process's cores",
    "change another process's scheduler",
}


def test_every_door_is_shut_and_each_try_that_python_announces_is_reported() -> None:
    attempts = {attempt.what: attempt for attempt in prove_isolation()}

    assert {name: attempt.detail for name, attempt in attempts.items() if not attempt.refused} == {}
    assert TRIES.keys() - UNREPORTED <= {name for name, attempt in attempts.items() if attempt.reported}


BROKEN = "raise ImportError('not installed')"
LEFT_OPEN = {
    "namespaces": set[str](),  # the other two hold, and the layer itself is missing
    "landlock": set[str](),
    "seccomp": {"open a socket by native code", "fork by native code", "make a file in memory by native code"},
    "namespaces and landlock": {"read a private file by native code", "read the parent's environment by native code"},
}


@pytest.mark.full
@pytest.mark.parametrize("removed", LEFT_OPEN)
def test_each_layer_that_is_taken_away_shows(tmp_path: Path, removed: str) -> None:
    """As where a library is not installed, or the machine does not permit namespaces."""
    environ = dict(os.environ)
    for layer, library in (("landlock", "py_landlock"), ("seccomp", "pyseccomp")):
        if layer == removed:
            (tmp_path / f"{library}.py").write_text(BROKEN)
    if "namespaces" in removed:
        environ["ROLLOUT_ISOLATION"] = "none" if "landlock" in removed else "landlock"

    open_doors = _open_doors(tmp_path, environ)

    layers = {f"do without {layer}" for layer in removed.split(" and ")}
    assert layers | LEFT_OPEN[removed] <= open_doors
    assert LEFT_OPEN[removed] or layers == open_doors


@pytest.mark.full
def test_what_the_operator_calls_enough_is_enough(tmp_path: Path) -> None:
    environ = {**os.environ, "ROLLOUT_ISOLATION": "landlock", "ROLLOUT_ISOLATION_REQUIRED": "landlock"}

    assert _open_doors(tmp_path, environ) == set()


@pytest.mark.full
def test_less_than_the_operator_requires_runs_no_version(tmp_path: Path) -> None:
    environ = {**os.environ, "ROLLOUT_ISOLATION": "landlock", "ROLLOUT_ISOLATION_REQUIRED": "namespaces"}

    with pytest.raises(subprocess.CalledProcessError) as failed:
        _open_doors(tmp_path, environ)

    assert "versions may only run isolated by namespaces" in failed.value.stderr


def _open_doors(folder: Path, environ: dict[str, str]) -> set[str]:
    script = (
        "import json; from strategy_core.isolation.probe import prove_isolation\n"
        "print(json.dumps([each.what for each in prove_isolation() if not each.refused]))"
    )
    path = os.pathsep.join([str(folder), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", script], env=environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stdout.splitlines()[-1]))  # the line before may warn that nothing isolates
