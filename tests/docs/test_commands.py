"""The commands of README, quickstart, how-to pages and examples run in order, and every option they name exists.

A `sh` block is run. A `text` block after it is part of its output. A `python` block is saved as its title first.
A `console` block needs more than this machine: only its `rollout` commands are checked.
"""

import ast
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import yaml
from typer.main import get_command

from strategy_core.cli import app
from tests.deployments.monitoring import rules
from tests.docs.pages import HOW_TO, PAGES, QUICKSTART, README, ROOT, Block, blocks, code_of, commands_of, name
from tests.endpoint import serving

RUNNABLE = [page for page in HOW_TO if any(block.language == "sh" for block in blocks(page))]
PRELOADED = Path(__file__).with_name("preloaded.py")
ROLLOUT = get_command(app)
LAST_LINES = {
    **{
        file: f"user_123 gets {strategy} 1.0.0: bucket 59.88 >= canary percent 0.00"
        for file, strategy in {
            "backtesting_style.py": "sma_cross",
            "breakout.py": "breakout",
            "freqtrade_style.py": "bands",
            "onnx_model.py": "exported",
            "platform_engine.py": "engine",
            "sklearn_model.py": "learned",
        }.items()
    },
    "paper_broker.py": "2000 trades, 2000 open, PnL 0.00",
    "tradingview.py": "export ROLLOUT_TIMEFRAME=1h",
    "route_users.py": "[('1.0.0', 739), ('2.0.0', 261)]",
    "whole_lifecycle.py": "rolled back: {'1.0.0': 'active', '2.0.0': 'retired'}, user_123 gets 1.0.0",
}
STAND_INS = ROOT / "tests" / "strategies" / "stand_ins"  # of packages that are not installed
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
CALL = re.compile(r"(?<![\w./-])(?<!--pool )rollout +([a-z-][^|&;()<>]*)")
LINK = re.compile(r"\]\(([^)#:]+)[^):]*\)")

pytestmark = pytest.mark.xdist_group("docs")


def executable(file: Path, command: str) -> None:
    file.write_text(f"#!/bin/sh\n{command}\n")
    file.chmod(0o755)


@pytest.fixture(scope="module")
def uv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PATH in which `uv run COMMAND` is COMMAND of this environment."""
    folder = tmp_path_factory.mktemp("uv")
    executable(folder / "uv", 'shift\nexec "$@"')
    return folder


@pytest.fixture(scope="module")
def quick() -> Iterator[Path]:
    """A folder for PATH whose `rollout` and `python` start in milliseconds."""
    with TemporaryDirectory() as folder:  # pytest's own folders can be too long for a socket's address
        socket = Path(folder, "socket")
        for command in ("rollout", "python"):
            executable(Path(folder, command), f'exec {sys.executable} -S {PRELOADED} {socket} {command} "$@"')
        with subprocess.Popen([sys.executable, PRELOADED, socket], cwd=ROOT, stdout=subprocess.PIPE) as server:
            assert server.stdout is not None
            assert server.stdout.readline() == b"ready\n"
            yield Path(folder)
            server.kill()


def run(
    source: Path,
    commands: list[Block],
    folder: Path,
    *path: Path,
    after: str = "",
    environment: dict[str, str] | None = None,
) -> dict[Block, str]:
    """Run all blocks in one shell and return what each prints; a failure names the line of *source*.

    *after* is a command that the shell has run before. The *environment* is this one by default, with this Python.
    """
    lines = [f"trap 'echo \"{name(source)}:$LINENO: $BASH_COMMAND\" >&2' ERR; {after}"]
    for block in commands:
        lines += [""] * (block.line - 1 - len(lines)) + [*block.text.splitlines(), f"echo '::{block.line}'"]
    script = folder / "script.sh"
    script.write_text("\n".join(lines))
    if environment is None:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("ROLLOUT_")}
        environment["PATH"] = os.pathsep.join([*map(str, path), str(Path(sys.executable).parent), environment["PATH"]])

    done = subprocess.run(
        ["bash", "-e", script], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    return dict(zip(commands, re.split(r"^::\d+\n", done.stdout, flags=re.MULTILINE), strict=False))


def run_page(page: Path, folder: Path, *path: Path, after: str = "") -> None:
    parts = blocks(page)
    for part in parts:
        if part.title:
            (folder / part.title).write_text(part.text)
    check_output(page, run(page, [part for part in parts if part.language == "sh"], folder, *path, after=after))


def check_output(page: Path, output: Mapping[Block, str]) -> None:
    for before, part in pairwise(blocks(page)):
        if part.language == "text" and before in output:
            lines = [line.rstrip() for line in output[before].splitlines()]  # cells of tables are padded
            assert part.text in "".join(f"{line}\n" for line in lines), f"{name(page)}:{part.line}"


def test_the_readmes_commands_run(uv: Path, tmp_path: Path) -> None:
    run_page(README, tmp_path, uv)


@pytest.mark.full
def test_the_quickstart_runs_in_a_fresh_clone(tmp_path: Path) -> None:
    """Every command of the page, in its order, as a newcomer without caches in the clone or settings in HOME."""
    clone, home = tmp_path / "strategy-rollout", tmp_path / "home"
    home.mkdir()
    subprocess.run(["git", "clone", "-q", ROOT, clone], check=True)
    cache = subprocess.run(["uv", "cache", "dir"], capture_output=True, text=True, check=True).stdout.strip()
    ours = ("ROLLOUT_", "PREFECT_", "PYTEST_", "PYTHON", "VIRTUAL_ENV")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    path = [each for each in environment["PATH"].split(os.pathsep) if Path(each) != Path(sys.executable).parent]
    environment |= {"PATH": os.pathsep.join(path), "HOME": str(home), "UV_CACHE_DIR": cache}
    installed, *commands, last = [each for each in blocks(QUICKSTART) if each.language in ("sh", "console")]
    for each in blocks(QUICKSTART):
        if each.title:
            (clone / each.title).write_text(each.text)

    assert installed.text.splitlines()[-1] == "uv run rollout demo"  # the lines before it are done above
    output = run(
        QUICKSTART, [replace(installed, text="uv run rollout demo\n"), *commands], clone, environment=environment
    )
    check_output(QUICKSTART, output)
    up = run_up(last, clone, environment)

    suggested = [line for text in output.values() for line in text.splitlines() if line.startswith("Next: ")]
    assert suggested
    assert all(line.startswith("Next: uv run rollout ") for line in suggested)
    assert [part for part in ("fib_rsi v2", "seasonal v2", "Prefect UI", "Stopping") if part not in up] == []


def run_up(block: Block, folder: Path, environment: dict[str, str]) -> str:
    """Run a block that ends with `rollout up`, press Ctrl-C once it asks for it, and return what it printed."""
    script = f"{block.text.strip().removesuffix('uv run rollout up')}exec uv run rollout up"
    printed = []
    with subprocess.Popen(
        ["bash", "-e", "-c", script], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
    ) as up:
        assert up.stdout is not None
        for line in up.stdout:
            printed.append(line)
            if line.startswith("Press Ctrl-C"):
                up.send_signal(signal.SIGINT)
    assert up.returncode == 0, "".join(printed)
    return "".join(printed)


BEFORE_HOW_TO = """\
export ROLLOUT_DATABASE_URL=sqlite:///quickstart.db
export ROLLOUT_REPLAY_FROM=2026-01-05T00:00Z
rollout db upgrade
rollout register fib_rsi 1.0.0 --status active --yes
rollout register fib_rsi 2.0.0 --config '{"fib_lookback_bars": 60}'
export ROLLOUT_REPLAY_FROM=2026-02-16T12:00Z
rollout shadow && rollout score
rollout start fib_rsi 2.0.0 --reason "longer look-back" --yes
export ROLLOUT_REPLAY_FROM=2026-02-25T12:00Z
rollout shadow && rollout score
rollout tick
rollout rollback fib_rsi --reason "slippage on the new broker"
"""
EXPORTS = [line for line in BEFORE_HOW_TO.splitlines() if line.startswith("export ")]


@pytest.fixture(scope="module")
def rolled_back(tmp_path_factory: pytest.TempPathFactory, uv: Path, quick: Path) -> Path:
    """The folder in which how-to pages begin: `fib_rsi` 1.0.0 is active, and 2.0.0 was rolled back."""
    folder = tmp_path_factory.mktemp("before")
    run(Path(__file__), [Block("sh", "", BEFORE_HOW_TO, 1)], folder, uv, quick)
    return folder


@pytest.mark.full
@pytest.mark.parametrize("page", RUNNABLE, ids=name)
def test_a_how_to_pages_commands_run(page: Path, rolled_back: Path, uv: Path, quick: Path, tmp_path: Path) -> None:
    run_page(page, shutil.copytree(rolled_back, tmp_path / "work"), uv, quick, after="; ".join(EXPORTS))


def console(page: str, *holding: str, **replaced: str) -> list[Block]:
    """Return the `console` blocks of a how-to page that hold one of these texts, with their placeholders replaced."""
    found = [each for each in blocks(ROOT / "docs" / "how-to" / page) if each.language == "console"]
    found = [each for each in found if any(text in each.text for text in holding)]
    for placeholder, value in replaced.items():
        found = [replace(each, text=each.text.replace(placeholder, value)) for each in found]
    return found


@pytest.mark.full
def test_the_rollbacks_in_their_page_run(rolled_back: Path, uv: Path, quick: Path, tmp_path: Path) -> None:
    folder, page = shutil.copytree(rolled_back, tmp_path / "work"), ROOT / "docs" / "how-to" / "roll-back.md"
    canary, activation = console(page.name, "rollout rollback")
    activate = "rollout activate fib_rsi 2.0.0 --override-reason mended --yes"

    first = run(page, [canary], folder, uv, quick, after="; ".join(EXPORTS))
    second = run(page, [activation], folder, uv, quick, after="; ".join([*EXPORTS, activate]))

    assert "fib_rsi 2.0.0 was rolled back already" in first[canary]
    assert "fib_rsi 2.0.0" in second[activation]
    assert "already" not in second[activation]


@pytest.mark.full
def test_the_test_of_a_channel_in_its_page_arrives(uv: Path, quick: Path, tmp_path: Path) -> None:
    page, shown = ROOT / "docs" / "how-to" / "send-alerts.md", "slack://... critical=mailto://... json://HOST/path"
    with serving() as endpoint:
        address = endpoint.url.removeprefix("http://")
        blocks_of_page = console(page.name, "rollout alerts test", **{shown: f"json://{address}/path"})
        run(page, blocks_of_page, tmp_path, uv, quick)

    assert "Nothing has happened." in endpoint.posted[0]["message"]


@pytest.mark.full
@pytest.mark.parametrize("example", EXAMPLES, ids=name)
def test_an_examples_own_commands_run(example: Path, uv: Path, quick: Path, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    shutil.copytree(STAND_INS, tmp_path / "examples", dirs_exist_ok=True)
    docstring = ast.get_docstring(ast.parse(example.read_text())) or ""
    commands = re.findall(r"^    (.+\n)", docstring, re.MULTILINE)

    (output,) = run(example, [Block("sh", "", "".join(commands), 3)], tmp_path, uv, quick).values()

    assert output.splitlines()[-1] == LAST_LINES[example.name]


def unknown(call: str) -> str:
    """Return the first word of *call* that `rollout` does not know, or an empty text."""
    command = ROLLOUT
    for word in shlex.split(call, comments=True):
        subcommands = getattr(command, "commands", {})
        if subcommands and not word.startswith("-"):
            if word not in subcommands:
                return word
            command = subcommands[word]
        elif word.startswith("-") and len(word) > 1:
            options = {option for each in command.params for option in (*each.opts, *each.secondary_opts)} | {"--help"}
            if word.partition("=")[0] not in options:
                return word
    return ""


@pytest.mark.parametrize("call", ["undo fib_rsi", "rollback fib_rsi --why late", "db upgrade --reason now"])
def test_a_command_or_option_that_does_not_exist_is_found(call: str) -> None:
    assert unknown(call)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_page_names_only_commands_and_options_that_exist(page: Path) -> None:
    calls = [call for code in code_of(page) for call in CALL.findall(code)]

    assert [call for call in calls if unknown(call)] == []


def test_runbooks_name_only_commands_and_options_that_exist() -> None:
    texts = [re.sub(r"\{\{-?(?: (?:if|else|end))?.*?\}\}", " x ", rule["annotations"]["runbook"]) for rule in rules()]
    calls = [call for text in texts for call in CALL.findall(text)]

    assert len(calls) >= len(texts)
    assert [call for call in calls if unknown(call)] == []


def services_of(command: str) -> list[str]:
    """Return the services that a `docker compose` command names."""
    words = shlex.split(command)[2:]
    if words[0] == "--profile":
        words = words[2:]
    subcommand, *rest = words
    if subcommand not in ("exec", "run"):
        return [word for word in rest if not word.startswith("-")]
    while rest[0].startswith("-"):
        rest = rest[2:] if rest[0] in ("--user", "--volume", "--workdir") else rest[1:]
    return rest[:1]


def test_compose_commands_name_services_that_exist() -> None:
    services = yaml.safe_load((ROOT / "deployments" / "compose.yaml").read_text())["services"]
    commands = commands_of("docker compose ")

    named = [(where, service) for where, command in commands for service in services_of(command)]

    assert len(commands) > 15
    assert len(named) > 10
    assert [each for each in named if each[1] not in services] == []


def test_the_readmes_links_lead_somewhere() -> None:
    assert [link for link in LINK.findall(README.read_text()) if not (ROOT / link).exists()] == []
