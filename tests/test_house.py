"""House rules that a machine can check: layers, docstrings, names, and the README's commands."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from sqlmodel import SQLModel

from strategy_core.store import tables as store_tables

ROOT = Path(__file__).parent.parent
SOURCES = [*ROOT.glob("strategy_core/**/*.py"), *ROOT.glob("flows/*.py"), *ROOT.glob("deployments/*.py")]


def test_imports_go_one_way() -> None:
    run = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert run.returncode == 0, run.stdout + run.stderr
    assert "4 kept, 0 broken" in run.stdout


def test_edges_build_no_row() -> None:
    tables = {name for name, one in vars(store_tables).items() if isinstance(one, type) and issubclass(one, SQLModel)}
    edges = [
        ROOT / name for name in ("flows", "deployments", *(f"strategy_core/{one}" for one in ("api", "cli", "demo")))
    ]

    built = [
        f"{file.relative_to(ROOT)}: {node.func.id}"
        for edge in edges
        for file in edge.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in tables
    ]

    assert "StrategyVersion" in tables
    assert built == []


def test_every_module_opens_with_a_docstring() -> None:
    assert [file for file in SOURCES if not file.read_text().startswith('"""')] == []


@pytest.mark.parametrize("word", ["utils", "helpers", "common", "models", "manager"])
def test_no_module_is_called_after_nothing(word: str) -> None:
    assert [file for file in SOURCES if file.stem == word or word in file.parent.parts] == []


def test_nothing_is_left_for_later() -> None:
    later = re.compile(r"\b(TODO|FIXME|XXX)\b")

    assert [file for file in SOURCES if later.search(file.read_text())] == []
