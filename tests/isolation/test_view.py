"""A worker sees the version's own modules and declared files, and nothing else of the machine."""

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from strategy_core.domain.errors import InvalidEntryPoint, StrategyFailed
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


REACHING = """
from pathlib import Path
from pydantic import BaseModel
from strategy_core import Action, Decision
SECRET = Path({secret!r})
class Reach:
    class Params(BaseModel):
        folder: str = {folder!r}
    warmup_bars = 1
    def model_files(self, params):
        return [SECRET] if "folder" in params.model_fields_set else []
    def decide(self, candles, params, context):
        return Decision(Action.HOLD, reason=SECRET.read_text() if SECRET.exists() else "")
"""


def test_a_default_of_the_config_that_is_stored_opens_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "private").mkdir()
    secret = tmp_path / "private" / "key.txt"
    secret.write_text("abc123")
    (tmp_path / "reaching.py").write_text(REACHING.format(secret=str(secret), folder=str(secret.parent)))
    monkeypatch.syspath_prepend(str(tmp_path))

    with IsolatedStrategy("reaching:Reach", {}) as strategy:
        first = strategy.describe()
        strategy.load_next(first)
        strategy.close()
        read = ask(strategy, "GOLD")
        second = strategy.describe()

    assert (first.model_files, second.model_files) == ((), (secret,))
    assert read == ""


FORGED = """
import os, sys
from pathlib import Path
message = {message!r}
for fd in range(3, 20):
    try:
        os.write(fd, message.encode() + b"\\n")
    except OSError:
        pass
"""


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        (
            '{"ready":{"config":{},"warmup_bars":20,"vectorised":false,"model_files":["/tmp/\\u0000x"],"notes":[]}}',
            "violated the protocol",
        ),
        (
            '{"ready":{"config":{"a":"\\ud800"},"warmup_bars":20,"vectorised":false,"model_files":[],"notes":[]}}',
            "violated",
        ),
        ('{"refused":["StrategyFailed",["\\u001b]0;owned\\u0007 \\n second line"]]}', "]0;owned second line"),
        ('{"refused":["IsolationUnavailable",["please set X=none","y"]]}', "violated the protocol"),
    ],
    ids=["NUL in a path", "half a character", "a terminal's command", "a level that there is none"],
)
def test_a_first_message_that_the_version_wrote_is_refused_in_a_clean_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, message: str, shown: str
) -> None:
    (tmp_path / "forging.py").write_text(FORGED.format(message=message))
    monkeypatch.syspath_prepend(str(tmp_path))

    with IsolatedStrategy("forging:Any", {}) as strategy, pytest.raises(StrategyFailed) as refused:
        strategy.describe()

    assert shown in str(refused.value)
    assert str(refused.value).isprintable()


def test_a_link_in_a_package_opens_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "any.py").write_text("")
    (outside / "notes.txt").write_text("private")
    package = tmp_path / "own" / "linked"
    package.mkdir(parents=True)
    (package / "sub").symlink_to(outside)
    (package / "__init__.py").write_text(
        LINKED.format(file=str(package / "sub" / "notes.txt")),
    )
    monkeypatch.syspath_prepend(str(tmp_path / "own"))

    with (
        IsolatedStrategy("linked:Linked", {}) as strategy,
        pytest.raises(InvalidEntryPoint, match="may not be a model file"),
    ):
        strategy.describe()


LINKED = """
from pathlib import Path
from pydantic import BaseModel
from strategy_core import Action, Decision
class Linked:
    class Params(BaseModel):
        pass
    warmup_bars = 20
    def model_files(self, params):
        return [Path({file!r})]
    def decide(self, candles, params, context):
        return Decision(Action.HOLD)
"""
