"""The commands of README, quickstart, how-to pages and examples run in order, and every option they name exists.

A `sh` block is run. A `text` block after it is part of its output. A `python` block is saved as its title first.
A `console` block needs more than this machine: only its `rollout` commands are checked.
"""

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
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


def run(source: Path, commands: list[Block], folder: Path, *path: Path, after: str = "") -> dict[Block, str]:
    """Run all blocks in one shell and return what each prints; a failure names the line of *source*.

    *after* is a command that the shell has run before.
    """
    lines = [f"trap 'echo \"{name(source)}:$LINENO: $BASH_COMMAND\" >&2' ERR; {after}"]
    for block in commands:
        lines += [""] * (block.line - 1 - len(lines)) + [*block.text.splitlines(), f"echo '::{block.line}'"]
    script = folder / "script.sh"
    script.write_text("\n".join(lines))
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
    output = run(page, [part for part in parts if part.language == "sh"], folder, *path, after=after)
    for before, part in pairwise(parts):
        if part.language == "text" and before in output:
            assert part.text in output[before], f"{name(page)}:{part.line}"


def test_the_readmes_commands_run(uv: Path, tmp_path: Path) -> None:
    run_page(README, tmp_path, uv)


@pytest.fixture(scope="module")
def after_quickstart(tmp_path_factory: pytest.TempPathFactory, uv: Path, quick: Path) -> Path:
    """The folder in which the quickstart was done: how-to pages continue there."""
    folder = tmp_path_factory.mktemp("quickstart")
    run_page(QUICKSTART, folder, uv, quick)
    return folder


@pytest.mark.full
@pytest.mark.parametrize("page", RUNNABLE, ids=name)
def test_a_how_to_pages_commands_run(page: Path, after_quickstart: Path, uv: Path, quick: Path, tmp_path: Path) -> None:
    exported = [line for block in blocks(QUICKSTART) for line in block.text.splitlines() if line.startswith("export ")]

    run_page(page, shutil.copytree(after_quickstart, tmp_path / "work"), uv, quick, after="; ".join(exported))


EXPORTS = [line for block in blocks(QUICKSTART) for line in block.text.splitlines() if line.startswith("export ")]


def console(page: str, *holding: str, **replaced: str) -> list[Block]:
    """Return the `console` blocks of a how-to page that hold one of these texts, with their placeholders replaced."""
    found = [each for each in blocks(ROOT / "docs" / "how-to" / page) if each.language == "console"]
    found = [each for each in found if any(text in each.text for text in holding)]
    for placeholder, value in replaced.items():
        found = [replace(each, text=each.text.replace(placeholder, value)) for each in found]
    return found


@pytest.mark.full
def test_the_rollbacks_in_their_page_run(after_quickstart: Path, uv: Path, quick: Path, tmp_path: Path) -> None:
    folder, page = shutil.copytree(after_quickstart, tmp_path / "work"), ROOT / "docs" / "how-to" / "roll-back.md"
    canary, activation = console(page.name, "rollout rollback")
    activate = "rollout activate fib_rsi 2.0.0 --override-reason mended --yes"

    first = run(page, [canary], folder, uv, quick, after="; ".join(EXPORTS))
    second = run(page, [activation], folder, uv, quick, after="; ".join([*EXPORTS, activate]))

    assert "fib_rsi 2.0.0 was rolled back already" in first[canary]  # by the quickstart
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
