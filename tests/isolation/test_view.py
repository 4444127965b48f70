"""A worker sees the version's own modules and declared files, and nothing else of the machine."""

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from strategy_core.domain.errors import InvalidEntryPoint
from strategy_core.isolation.client import DecisionRequest, IsolatedStrategy

READS = """
import importlib
from pathlib import Path

from pydantic import BaseModel

from strategy_core import Action, Decision


class Params(BaseModel):
    model: str = ""


class Reads:
    Params = Params
    warmup_bars = 1

    def decide(self, candles, params, context):
        ask, _, name = context.symbol.partition(" ")
        if ask == "import":
            return Decision(Action.HOLD, reason=importlib.import_module(name).ANSWER)
        if ask == "list":
            return Decision(Action.HOLD, reason=" ".join(sorted(path.name for path in Path(name).iterdir())))
        return Decision(Action.HOLD, reason=(Path(__file__).parent / name).read_text())


class Declares(Reads):
    def model_files(self, params):
        return [Path(params.model) if params.model else Path(__file__).with_name("weights.txt")]
"""
Write = Callable[[str, str], Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write a file below a folder on the search path, which is the working directory too."""
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    (tmp_path / "code").mkdir()
    monkeypatch.chdir(tmp_path / "code")

    def written(name: str, text: str) -> Path:
        path = tmp_path / "code" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return written


def ask(version: IsolatedStrategy, wish: str) -> str:
    """Return the reason of the decision, or the error."""
    candle = pd.DataFrame({"close": [1.0]}, index=pd.date_range("2026-01-05", periods=1, tz="UTC"))
    ((answer,),) = version.decide([DecisionRequest(wish, "1h", candle, [0], 1)])
    return str(answer.error) if answer.decision is None else answer.decision.reason


def test_a_file_that_is_not_declared_does_not_exist(write: Write) -> None:
    write("viewed_a.py", READS)
    write("weights.txt", "0.5")
    with IsolatedStrategy("viewed_a:Reads", {}) as undeclared, IsolatedStrategy("viewed_a:Declares", {}) as declared:
        assert ask(undeclared, "read weights.txt").startswith("FileNotFoundError")
        assert ask(declared, "read weights.txt") == "0.5"


def test_a_model_file_may_lie_where_the_config_says(write: Write, tmp_path: Path) -> None:
    write("viewed_b.py", READS)
    model = tmp_path / "models" / "gold.txt"
    model.parent.mkdir()
    model.write_text("0.7")
    with IsolatedStrategy("viewed_b:Declares", {"model": str(model)}) as version:
        assert ask(version, f"read {model}") == "0.7"
        assert ask(version, f"list {model.parent}") == "gold.txt"


def test_what_a_version_may_not_declare(write: Write, tmp_path: Path) -> None:
    source = READS.replace('Path(__file__).with_name("weights.txt")', "Path(TARGET)")
    elsewhere, hidden, database = tmp_path / "private.txt", write(".env", "KEY=1"), tmp_path / "code" / "rollout.db"
    elsewhere.write_text("private")
    with sqlite3.connect(database) as connection:
        connection.execute("CREATE TABLE a (b)")
    for number, (target, why) in enumerate(
        [
            (elsewhere, "it is neither beside the version's modules nor under a path that its config names"),
            (hidden, "it is a hidden file"),
            (database, "it is a database"),
        ]
    ):
        write(f"viewed_c{number}.py", f"TARGET = {str(target)!r}\n{source}")
        with (
            IsolatedStrategy(f"viewed_c{number}:Declares", {}) as version,
            pytest.raises(InvalidEntryPoint, match=rf"may not be a model file: {why}"),
        ):
            version.describe()


def test_own_code_is_what_is_imported_by_name_in_its_files(write: Write) -> None:
    write("viewed_d.py", f"import viewed_helper\n{READS}")
    write("viewed_helper.py", "ANSWER = 'imported'")
    write("viewed_stray.py", "ANSWER = 'stray'")
    with IsolatedStrategy("viewed_d:Reads", {}) as version:
        assert ask(version, "import viewed_helper") == "imported"
        assert ask(version, "import viewed_stray").startswith("ModuleNotFoundError: No module named 'viewed_stray'")


def test_a_later_edit_reaches_the_next_worker_and_not_the_running_one(write: Write) -> None:
    write("viewed_e/__init__.py", "")
    write("viewed_e/entry.py", READS)
    write("viewed_e/late.py", "ANSWER = 'before'")
    with IsolatedStrategy("viewed_e.entry:Reads", {}) as version:
        version.describe()
        write("viewed_e/late.py", "ANSWER = 'after'")
        running = ask(version, "import viewed_e.late")
        version.close()
        following = ask(version, "import viewed_e.late")

    assert (running, following) == ("before", "after")


def test_an_installed_package_shows_its_modules_and_no_other_file(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("site-packages/viewed_f/__init__.py", READS)
    write("site-packages/viewed_f/weights.txt", "0.5")
    write("site-packages/viewed_library/__init__.py", "")
    write("site-packages/viewed_library/table.txt", "of a library")
    monkeypatch.syspath_prepend(str(Path("site-packages").absolute()))
    with IsolatedStrategy("viewed_f:Reads", {}) as version:
        assert ask(version, "read weights.txt").startswith("FileNotFoundError")
        assert ask(version, "read ../viewed_library/table.txt") == "of a library"
    with IsolatedStrategy("viewed_f:Declares", {}) as version:
        assert ask(version, "read weights.txt") == "0.5"


def test_a_worker_has_no_processes_no_home_and_no_working_files(write: Write) -> None:
    write("viewed_g.py", READS)
    write("candles.csv", "timestamp,close")
    home = str(Path.home())
    with IsolatedStrategy("viewed_g:Reads", {}) as version:
        assert ask(version, f"list {Path.cwd()}") == "viewed_g.py"
        assert ask(version, "list /proc").split() == ["cpuinfo", "meminfo"]
        assert ask(version, "list /dev").split() == ["null", "random", "urandom", "zero"]
        assert ask(version, "list /etc").split() == ["ld.so.cache"]
        assert ask(version, f"read {home}/.bash_history").startswith("FileNotFoundError")
        assert "tmp" not in ask(version, "list /").split() or os.fspath(Path.cwd()).startswith("/tmp")
