"""The exporter as a scraper meets it: through a real port, without a token."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as as_openmetrics
from sqlalchemy import Engine

from strategy_core.cli import main
from strategy_core.observe.exporter import Exporter
from strategy_core.observe.metrics import NAMES, OPENMETRICS, PLAIN_TEXT
from strategy_core.store.engine import open_database
from tests.builders import HOUR, MONDAY, decision_row, put_decisions, put_version
from tests.observe.scraping import samples


@contextmanager
def exporting(engine: Engine, now: datetime = MONDAY + HOUR, *, host: str = "127.0.0.1") -> Iterator[Exporter]:
    with Exporter(engine, lambda: now, host=host, port=0) as exporter:
        loop = threading.Thread(target=exporter.serve_forever)
        loop.start()
        try:
            yield exporter
        finally:
            exporter.shutdown()
            loop.join()


def test_a_scraper_gets_what_stands_in_the_database_now(engine: Engine) -> None:
    put_version(engine, "1")
    put_decisions(engine, decision_row("1", MONDAY, "buy"))
    with exporting(engine) as exporter:
        first = httpx.get(exporter.url)
        put_decisions(engine, decision_row("1", MONDAY + HOUR, "buy"))
        second = httpx.get(exporter.url)

    said = "shadow_decisions_total decision=buy strategy=fib_rsi symbol=GOLD version=1"
    assert (samples(first.text)[said], samples(second.text)[said]) == (1, 2)
    assert first.headers["content-type"] == PLAIN_TEXT


def test_openmetrics_is_spoken_to_whom_it_is_asked_for(engine: Engine) -> None:
    put_version(engine, "1")
    with exporting(engine) as exporter:
        answer = httpx.get(
            exporter.url, headers={"Accept": "application/openmetrics-text;version=1.0.0;q=0.8,*/*;q=0.1"}
        )

    assert answer.headers["content-type"].startswith(OPENMETRICS)
    families = list(as_openmetrics(answer.text))  # type: ignore[no-untyped-call]
    assert {f"{one.name}_total" if one.type == "counter" else one.name for one in families} == NAMES


def test_a_database_that_cannot_be_read_is_an_error_and_no_empty_page() -> None:
    away = open_database("postgresql://nobody:secret@127.0.0.1:1/nothing")
    with exporting(away) as exporter:
        answers = [httpx.get(exporter.url) for _ in range(2)]

    for answer in answers:
        assert answer.status_code == 503
        assert "refuses to work" in answer.text
        assert "secret" not in answer.text


def test_a_database_of_another_release_is_an_error_too(tmp_path: Path) -> None:
    with exporting(open_database(f"sqlite:///{tmp_path}/empty.db")) as exporter:
        assert httpx.get(exporter.url).status_code == 503


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/", 404), ("GET", "/metrics?x=1", 200), ("HEAD", "/metrics", 200), ("POST", "/metrics", 501)],
)
def test_nothing_else_is_answered(sqlite_url: str, method: str, path: str, status: int) -> None:
    engine = open_database(sqlite_url)
    with exporting(engine) as exporter:
        answer = httpx.request(method, exporter.url.removesuffix("/metrics") + path)

    assert answer.status_code == status
    assert (answer.text == "") == (method == "HEAD")
    engine.dispose()


def test_a_client_that_says_nothing_keeps_nobody_waiting(sqlite_url: str) -> None:
    engine = open_database(sqlite_url)
    with exporting(engine) as exporter, socket.create_connection(exporter.address) as silent:
        assert httpx.get(exporter.url).status_code == 200
        silent.shutdown(socket.SHUT_RDWR)
    engine.dispose()


def test_it_listens_on_ipv6_where_it_is_told_to(sqlite_url: str) -> None:
    engine = open_database(sqlite_url)
    with exporting(engine, host="::1") as exporter:
        assert exporter.url.startswith("http://[::1]:")
        assert httpx.get(exporter.url).status_code == 200
    engine.dispose()


@pytest.mark.full
def test_the_command_serves_until_it_is_told_to_end(sqlite_url: str, tmp_path: Path) -> None:
    """By the platform's clock, which a replay moves; what SIGTERM ends has ended well."""
    engine = open_database(sqlite_url)
    put_version(engine, "1", at=MONDAY)
    engine.dispose()
    clean = {name: value for name, value in os.environ.items() if not name.startswith("ROLLOUT_")}
    clock = {"ROLLOUT_REPLAY_FROM": (MONDAY + HOUR).isoformat(), "ROLLOUT_REPLAY_STARTED_AT": "2199-01-01T00:00Z"}
    process = subprocess.Popen(
        [sys.executable, "-m", "strategy_core.cli", "exporter", "--port", "0", "--database-url", sqlite_url],
        env=clean | clock,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    url = json.loads(process.stderr.readline())["url"]
    answer = httpx.get(url)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)

    assert url.startswith("http://127.0.0.1:")
    assert samples(answer.text)["shadow_lag_seconds strategy=fib_rsi version=1"] == 3600
    assert (process.returncode, "exporter.ended" in said) == (0, True)


def test_the_command_refuses_a_database_of_another_release(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ROLLOUT_DATABASE_URL", f"sqlite:///{tmp_path}/none.db")

    assert main(["exporter", "--port", "0"]) != 0
    assert "rollout db upgrade" in capsys.readouterr().err
