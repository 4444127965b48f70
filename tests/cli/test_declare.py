"""`rollout diff` and `rollout apply`: exit codes, JSON, and what a file may not hold."""

from pathlib import Path

import pytest
from sqlalchemy import Engine

from tests.builders import put_pair
from tests.cli.conftest import Rollout, contents

EXAMPLE = Path(__file__).parents[2] / "examples" / "rollout.yaml"
POLICY = """
plans: {careful: {bake: 9d}}
policies: {fib_rsi: {plans: [careful]}}
"""


@pytest.fixture
def file(database: Engine, tmp_path: Path) -> str:
    put_pair(database)
    written = tmp_path / "rollout.yaml"
    written.write_text(POLICY, "utf-8")
    return str(written)


def test_a_difference_is_exit_code_2_until_it_is_applied(rollout: Rollout, file: str) -> None:
    before = rollout("diff", file)
    applied = rollout("apply", file, "--reason", "commit 1a2b3c")
    after = rollout("diff", file)

    assert (before.code, before.out) == (2, "+ policy fib_rsi: plan careful is added\n1 to add\n")
    assert (applied.code, applied.out) == (0, "applied: policy fib_rsi: plan careful is added\n1 applied\n")
    assert (after.code, after.out) == (0, "no difference\n")
    assert rollout("apply", file, "--json").data == []


def test_live_state_is_refused_by_line_and_exit_code_1(rollout: Rollout, file: str, database: Engine) -> None:
    Path(file).write_text("strategies:\n  fib_rsi:\n    percent: 5\n", "utf-8")
    before = contents(database)

    refused = rollout("diff", file)

    assert (refused.code, refused.out) == (1, "")
    assert "line 3, strategies.fib_rsi.percent: percent is live state and cannot be declared" in refused.err
    assert rollout("apply", file).code == 2
    assert contents(database) == before


_LAUGHS = "a: &a [ha, ha]\n" + "".join(
    f"{name}: &{name} [*{before}, *{before}, *{before}, *{before}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
HOSTILE = {
    "billion laughs": (_LAUGHS.encode(), "line 2: aliases are not allowed"),
    "an alias of itself": (b"a: &a [*a]", "line 1: aliases are not allowed"),
    "merged": (b"a: &a {b: 1}\nc: {<<: *a}", "line 2: aliases are not allowed"),
    "huge": (b"# " + b"x" * 1_000_001, "it is larger than 1,000,000 bytes"),
    "a tag that runs code": (b"plans: !!python/object/apply:os.system [id]", "line 1: tag tag:yaml.org,2002:python"),
    "a tag of its own": (b"plans: !plan {}", "line 1: tag !plan is not allowed"),
    "a number that is none": (b"plans: !!int many", "'many' is not a number"),
    "a key twice": (b"plans: {}\nplans: {}", "occurs twice"),
    "a key twice, in depth": (b"policies: {fib_rsi: {four_eyes: true, four_eyes: false}}", "occurs twice"),
    "json, a key twice": (b'{"plans": {}, "plans": {}}', "occurs twice"),
    "a list as key": (b"? [a]\n: b", "line 1: a name must be a text"),
    "latin-1": ("plans: {gr\u00fcn: {}}".encode("latin-1"), "it is not UTF-8"),
    "utf-16": ("plans: {}".encode("utf-16"), "it is not UTF-8"),
    "control characters": (b"plans: {a\x00b: {}}", "unacceptable character"),
    "escaped NUL": (b'policies: {"fib\\0rsi": {}}', "which cannot be stored"),
    "half a surrogate": (
        b'versions: [{strategy: fib_rsi, version: "9", config: {a: "\\ud800"}}]',
        "which cannot be stored",
    ),
    "NUL in a config": (b'versions: [{strategy: fib_rsi, version: "9", config: {a: "\\0"}}]', "which cannot be stored"),
    "deep": (b"plans: " + b"[" * 100_000, "it is nested too deeply"),
    "deep json": (b'{"a": ' * 50_000, "it is nested too deeply"),
    "deep config": (
        b"versions: [{strategy: fib_rsi, version: '9', config: {a: " + b"[" * 150 + b"]" * 150 + b"}}]",
        "nested too deeply",
    ),
    "two documents": (b"plans: {}\n---\nplans: {}", "but found another document"),
    "no mapping": (b"- plans", "line 1: "),
    "digits": (b"plans: {a: {bake: " + b"9" * 5_000 + b"}}", "is not a number"),
    "no number": (b"versions: [{strategy: fib_rsi, version: '9', config: {a: 1e999}}]", "is not a number"),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("command", ["apply", "diff"])
def test_a_hostile_file_is_refused_in_a_line_and_nothing_is_applied(
    rollout: Rollout, file: str, database: Engine, command: str, name: str
) -> None:
    content, why = HOSTILE[name]
    Path(file).write_bytes(content)
    before = contents(database)

    refused = rollout(command, file)

    assert refused.code == {"apply": 2, "diff": 1}[command]
    assert (refused.out, refused.err.count("\n")) == ("", 1)
    assert len(refused.err) < 600
    assert why in refused.err
    assert contents(database) == before


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/full", "/proc/self/mem", "/", "loop", "dangling"])
def test_a_path_that_is_no_file_is_refused_in_a_line(rollout: Rollout, tmp_path: Path, path: str) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")

    refused = rollout("diff", str(tmp_path / path))

    assert (refused.code, refused.out, refused.err.count("\n")) == (1, "", 1)


def test_a_symbolic_link_is_read(rollout: Rollout, file: str, tmp_path: Path) -> None:
    (tmp_path / "link.yaml").symlink_to(file)

    assert rollout("diff", str(tmp_path / "link.yaml")).code == 2


@pytest.mark.parametrize("words", [["nowhere.yaml"], ["--bogus"]], ids=["no file", "no such option"])
def test_an_error_of_diff_is_no_difference(rollout: Rollout, words: list[str]) -> None:
    assert rollout("diff", *words).code == 1


def test_a_start_names_a_plan_of_the_policy(rollout: Rollout, file: str) -> None:
    rollout("apply", file)

    refused = rollout("start", "fib_rsi", "2", "--yes")
    unknown = rollout("start", "fib_rsi", "2", "--plan", "bold", "--yes")
    started = rollout("start", "fib_rsi", "2", "--plan", "careful", "--yes", "--json")

    assert refused.code == 5
    assert "allows these plans only: careful; use one of them, or give an override reason" in refused.err
    assert (unknown.code, "known plans: careful" in unknown.err) == (4, True)
    assert started.data["plan"]["bake"] == 9 * 86_400


def test_the_schema_is_printed_without_a_file(rollout: Rollout) -> None:
    sections = rollout("apply", "--schema").data["properties"]

    assert sections.keys() == {"strategies", "versions", "plans", "policies", "toggles"}


@pytest.mark.full  # registers two versions
def test_the_example_is_applied_twice(rollout: Rollout) -> None:
    first = rollout("apply", str(EXAMPLE), "--json").data
    trail = rollout("audit", "--json").data

    assert [(each["what"], each["outcome"]) for each in first] == [
        ("version fib_rsi 1.0.0", "applied"),
        ("version fib_rsi 1.1.0", "applied"),
        ("policy fib_rsi", "applied"),
    ]
    assert rollout("apply", str(EXAMPLE), "--json").data == []
    assert rollout("audit", "--json").data == trail
    assert rollout("list", "--json").data[0]["status"] == "shadow"
