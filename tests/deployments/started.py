"""Start `up` for tests: its process, its output, its state folder, and its Prefect server's deployments."""

import os
import re
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import yaml

from deployments import prefect_yaml

PATIENCE_S = 300.0
T = TypeVar("T")
FEED = "synthetic:GOLD?symbols=4&days=400"
START = f"""
import sys
from pathlib import Path
from deployments.up import up
echo = lambda line: print(line, flush=True)
sys.exit(up(database_url=None, feed="{FEED}", symbol=None, speed=5760.0, port=None, state=Path(sys.argv[1]), echo=echo))
"""


def wait_for(found: Callable[[], T | None]) -> T:
    deadline = time.monotonic() + PATIENCE_S
    while (answer := found()) is None:
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.25)
    return answer


@dataclass(frozen=True)
class Up:
    """A started `up`: its process, the file with its output, and its state folder."""

    process: "subprocess.Popen[str]"
    output: Path
    state: Path

    @classmethod
    def start(cls, state: Path, **settings: str) -> "Up":
        (state / "prefect.yaml").write_text(quick(prefect_yaml()))
        output = state / "output.txt"
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "ROLLOUT_"))}
        with output.open("w") as file:
            process = subprocess.Popen(
                [sys.executable, "-c", START, str(state)],
                env=clean | {"HOME": str(state / "home")} | settings,
                stdout=file,
                stderr=subprocess.STDOUT,
                text=True,
            )
        return cls(process, output, state)

    def prints(self, pattern: str) -> "re.Match[str]":
        def found() -> "re.Match[str] | None":
            text = self.output.read_text()
            ended = self.process.poll()
            match = re.search(pattern, text)
            assert match or ended is None, f"it ended with {ended}: {text}"
            return match

        return wait_for(found)

    def password(self) -> str:
        """Return the user and password of its Prefect server."""
        return (self.state / "prefect-password").read_text().strip()

    def login(self) -> dict[str, str]:
        """Return the header of a request to its Prefect server."""
        return {"Authorization": f"Basic {b64encode(self.password().encode()).decode()}"}

    def groups(self) -> set[int]:
        """Return the process groups of its children."""
        return {int(pid) for pid in re.findall(r"pid (\d+)", self.output.read_text())}

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)


def quick(file: Path) -> str:
    """Return the deployments with schedules that a test can wait for."""
    described = yaml.safe_load(file.read_text())
    for deployment in described["deployments"]:
        if deployment["name"] in ("shadow-run", "ramp-tick"):
            deployment["schedules"] = [{"interval": 15, "anchor_date": "2026-01-01T00:00:00+00:00", "timezone": "UTC"}]
    return str(yaml.safe_dump(described))


def members(groups: set[int]) -> list[str]:
    """Return the running processes of *groups*, without zombies."""
    listed = subprocess.run(["ps", "-eo", "pgid=,stat=,args="], capture_output=True, text=True, check=True).stdout
    return [row for row in listed.splitlines() if int(row.split()[0]) in groups and row.split()[1][0] != "Z"]


def names() -> list[str]:
    return [each["name"] for each in yaml.safe_load(prefect_yaml().read_text())["deployments"]]


def deployments(api: httpx.Client) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in api.post("/deployments/filter", json={}).raise_for_status().json()}


def arguments(running: Up, state: Path) -> dict[str, Any]:
    """Return arguments for another `up` on the same, already seeded database."""
    database_url = f"sqlite:///{running.state / 'rollout.db'}"
    return {"database_url": database_url, "feed": FEED, "symbol": None, "speed": 5760.0, "port": None, "state": state}


KEPT = (
    "entrypoint",
    "description",
    "tags",
    "parameters",
    "parameter_openapi_schema",
    "enforce_parameter_schema",
    "concurrency_options",
)


def schedules(deployment: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the schedules, without anchors: the server adds one to an interval without it."""
    plain = [{"active": each["active"], **each["schedule"]} for each in deployment["schedules"]]
    return [{key: value for key, value in each.items() if key != "anchor_date"} for each in plain]
