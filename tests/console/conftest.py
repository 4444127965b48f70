"""A browser on the Prefect UI of a started `rollout up`: what an owner sees and clicks, and pictures of it."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import httpx
import pytest
from sqlalchemy import Engine

from strategy_core.store.engine import open_database
from tests.api.processes import serving, token_of
from tests.fleets import put_fleet

PATIENCE_S = 600.0
CHROMIUM = "/usr/bin/chromium"
QUIETLY = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-dev-shm-usage")
WIDE, HIGH, TALL = 1280, 900, 1640
COLOURS = 128  # of a picture: what a user interface needs
T = TypeVar("T")


def wait_for(found: Callable[[], T | None], what: str) -> T:
    deadline = time.monotonic() + PATIENCE_S
    while (answer := found()) is None:
        assert time.monotonic() < deadline, f"timed out: {what}"
        time.sleep(1)
    return answer


@dataclass(frozen=True)
class Up:
    """A started `rollout up`: the address of its UI, the password in the printed link, its database, and its output."""

    ui: str
    key: str
    engine: Engine
    process: "subprocess.Popen[bytes]"
    output: Path

    @property
    def login(self) -> dict[str, str]:
        return {"Authorization": f"Basic {self.key}"}

    def wait_for(self, found: Callable[[], T | None], what: str) -> T:
        """Wait until *found* returns a value, or fail if the process ended."""

        def living() -> T | None:
            assert self.process.poll() is None, self.output.read_text()
            return found()

        return wait_for(living, what)

    def deployment(self, name: str) -> str:
        """Return the id of a deployment, once it is served."""

        def found() -> str | None:
            answer = (
                httpx.post(f"{self.ui}/api/deployments/filter", json={}, timeout=60, headers=self.login)
                .raise_for_status()
                .json()
            )
            return next((str(each["id"]) for each in answer if each["name"] == name), None)

        return self.wait_for(found, f"deployment {name}")

    def owners_runs(self) -> set[str]:
        """Return the ids of all runs started by owners."""
        wanted = {"flow_runs": {"tags": {"all_": ["owner"]}}}
        answer = (
            httpx.post(f"{self.ui}/api/flow_runs/filter", json=wanted, timeout=60, headers=self.login)
            .raise_for_status()
            .json()
        )
        return {str(each["id"]) for each in answer}


@dataclass(frozen=True)
class Site:
    """The API as a process of its own, with a fleet: its address, its database, and the ids of the rollouts."""

    address: str
    engine: Engine
    rollouts: dict[str, UUID]

    @property
    def console(self) -> str:
        return f"{self.address}/console"

    def link(self, name: str = "ana", **claims: Any) -> str:
        """Return the link that logs in, as `rollout token --link` prints it."""
        return f"{self.console}/login#{token_of(name, **claims)}"


@pytest.fixture(scope="module")
def site(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Serve a fleet whose newest candles and ticks are of this moment."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copy(sqlite_template, folder / "rollout.db")
    url = f"sqlite:///{folder}/rollout.db"
    engine = open_database(url)
    rollouts = put_fleet(engine, datetime.now(UTC))
    with serving(url, folder / "api.log") as address:
        yield Site(address, engine, rollouts)
    engine.dispose()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(QUIETLY))
        yield browser
        browser.close()


@pytest.fixture
def open_tab(chromium: Any) -> Iterator[Callable[..., Any]]:
    """Return how to open a page in a browser of its own. An error of its script or a blocked one fails the test."""
    contexts, problems = [], []

    def opened(url: str, **settings: Any) -> Any:
        context = chromium.new_context(**{"viewport": {"width": WIDE, "height": HIGH}} | settings)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: problems.append(message.text) if "Security" in message.text else None)
        page.goto(url)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert problems == []


@pytest.fixture(scope="session")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """Start it in an empty folder with an empty home, at twice the default speed."""
    home = tmp_path_factory.mktemp("home")
    output = home / "output.txt"
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "ROLLOUT_"))}
    with output.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "strategy_core.cli", "up", "--speed", "11520"],
            env=clean | {"HOME": str(home)},
            cwd=home,
            stdout=file,
            stderr=subprocess.STDOUT,
        )

    def printed(pattern: str) -> str:
        def found() -> str | None:
            assert process.poll() is None, output.read_text()
            match = re.search(pattern, output.read_text())
            return match[1] if match else None

        return wait_for(found, pattern)

    try:
        ui, _, key = printed(r"Prefect UI +(http://\S+)\n").partition("/open#")
        engine = open_database(printed(r"database +(sqlite:///\S+)\n"))
        yield Up(ui, key, engine, process, output)
        engine.dispose()
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(PATIENCE_S)


@pytest.fixture
def page(up: Up) -> Iterator[Any]:
    """Open the printed link, which signs in."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(QUIETLY))
        page = browser.new_page(viewport={"width": WIDE, "height": HIGH})
        page.set_default_timeout(PATIENCE_S * 1e3 / 5)
        page.goto(f"{up.ui}/open#{up.key}")
        page.wait_for_url(lambda url: "/open" not in url)
        yield page
        browser.close()


@pytest.fixture
def shoot(page: Any, tmp_path: Path) -> Callable[[str], None]:
    """Return how to keep a picture of what is seen now: in ROLLOUT_SCREENSHOTS, or among the test's own files."""
    folder = Path(os.environ.get("ROLLOUT_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)

    def keep(name: str) -> None:
        from PIL import Image

        page.mouse.move(0, 0)
        high = page.evaluate("Math.max(...[...document.querySelectorAll('main, main *')].map(e => e.scrollHeight))")
        page.set_viewport_size({"width": WIDE, "height": max(HIGH, min(int(high) + 40, TALL))})
        page.wait_for_timeout(500)
        picture = Image.open(BytesIO(page.screenshot())).convert("RGB")
        picture.quantize(COLOURS).save(folder / f"{name}.png", optimize=True)
        page.set_viewport_size({"width": WIDE, "height": HIGH})

    return keep
