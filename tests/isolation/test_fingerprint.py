"""The same build has the same fingerprint everywhere, and a different build differs in named parts."""

import gc
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import sleep

import pytest

from strategy_core.domain.errors import InvalidConfig, InvalidEntryPoint
from strategy_core.isolation.fingerprint import Fingerprint, changed_parts, digest_of, fingerprint, schema_of


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A strategy package on the path, whose every module would raise if it were imported."""
    root = tmp_path / "alpha_owner"
    (root / "signals" / "deep").mkdir(parents=True)
    explode = "raise SystemExit('imported')\n"
    (root / "__init__.py").write_text(explode)
    (root / "strategy.py").write_text(
        explode + "import numpy\nfrom . import levels\nfrom .signals import rsi as r\nimport alpha_owner.extra.late\n"
    )
    (root / "levels.py").write_text(explode + "def f():\n    from alpha_owner.signals.deep.inner import thing\n")
    (root / "signals" / "__init__.py").write_text(explode)
    (root / "signals" / "rsi.py").write_text(explode + "from ..constants import RSI\n")
    (root / "signals" / "deep" / "inner.py").write_text(explode)  # a namespace package: no __init__
    (root / "constants.py").write_text(explode + "RSI = 14\n")
    (root / "unused.py").write_text(explode)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    yield root
    assert not [name for name in sys.modules if name.startswith("alpha_owner")]


def of(entry_point: str = "alpha_owner.strategy:Alpha", **changed: object) -> Fingerprint:
    facts = {"symbols": ["GOLD", "EURUSD"], "timeframe": "1h", "warmup_bars": 150, "model_files": ()} | changed
    config = facts.pop("config", {"n": 14, "x": 0.5})
    return fingerprint(entry_point, config, **facts)  # type: ignore[arg-type]


def sources(build: Fingerprint) -> set[str]:
    return {name.removeprefix("source of alpha_owner.") for name in build.parts if name.startswith("source of ")}


def test_it_covers_every_module_and_library_without_running_them(package: Path) -> None:
    (package / "levels.py").write_text("import scipy.stats, yaml\n")

    build = of()

    modules = {"constants", "levels", "signals", "signals.deep.inner", "signals.rsi", "strategy", "unused"}
    assert sources(build) == {"source of alpha_owner", *modules}
    assert {name for name in build.parts if name.startswith("library ")} == {"library scipy", "library pyyaml"}
    assert {"numpy", "pandas", "ta-lib"} <= build.parts.keys()
    assert (build.parts["schema"], build.parts["python"]) == ("2", f"3.{sys.version_info.minor}")


def test_schema_1_covers_what_the_strategy_may_import_of_its_own_package(package: Path) -> None:
    build = of(schema="1")

    inner = {"constants", "levels", "signals", "signals.deep.inner", "signals.rsi", "strategy"}
    assert sources(build) == {"source of alpha_owner", *inner}
    rest = {"entry_point", "config", "symbols", "timeframe", "warmup_bars", "numpy", "pandas", "ta-lib"}
    assert {name for name in build.parts if not name.startswith("source of ")} == rest
    assert (schema_of(build.parts), schema_of(of().parts)) == ("1", "2")


def test_a_change_of_any_part_changes_it_and_is_named(package: Path, tmp_path: Path) -> None:
    model = tmp_path / "model.bin"
    model.write_bytes(b"weights")
    before = of(model_files=[model])
    (package / "constants.py").write_text("RSI = 21\n")
    model.write_bytes(b"other weights")
    after = of(model_files=[model], config={"n": 15}, symbols=["GOLD"], timeframe="4h", warmup_bars=151)

    changed = changed_parts(before.parts, after.parts)

    assert before.digest != after.digest
    assert changed == [
        "config", "model file 1 model.bin", "source of alpha_owner.constants", "symbols", "timeframe", "warmup_bars",
    ]  # fmt: skip


def test_what_does_not_change_an_answer_does_not_change_it(package: Path) -> None:
    before = of()
    (package / "notes.txt").write_text("another")
    (package.parent / "beside.py").write_text("another = 1\n")

    assert of(config={"x": 0.5, "n": 14}, symbols=["EURUSD", "GOLD"]) == before


def test_a_part_that_came_or_went_is_named() -> None:
    assert changed_parts({"a": "1", "b": "2"}, {"b": "2", "c": "3"}) == ["a", "c"]


def test_a_name_and_what_it_stands_for_are_one_build() -> None:
    by_name = of("fib_rsi")

    assert by_name == of("strategy_core.strategies.fib_rsi:FibRsi")
    assert by_name.parts["entry_point"] == "strategy_core.strategies.fib_rsi:FibRsi"


def test_an_upgrade_of_this_product_is_no_new_version_of_a_built_in_strategy() -> None:
    sources = {name for name in of("fib_rsi").parts if name.startswith("source of ")}

    assert sources == {"source of strategy_core.strategies", "source of strategy_core.strategies.fib_rsi"}


def test_the_digest_is_pinned() -> None:
    """It is stored with every version: another way to take it would refuse them all."""
    parts = {"timeframe": "1h", "config": '{"n":14}', "symbols": "GOLD"}

    assert digest_of(parts) == "d27b03bbf98d1e00f926690cd583c309868e188172190ee3211a3d6dc52525eb"


@pytest.mark.parametrize(
    ("entry_point", "text"),
    [
        ("alpha_owner.nothing:Alpha", "no module named 'alpha_owner.nothing'"),
        ("nowhere_at_all.x:Alpha", "no module named 'nowhere_at_all.x'"),
        ("alpha_owner.broken:Alpha", "module alpha_owner.broken cannot be read"),
        ("alpha", "neither package.module:Class nor a known name"),
    ],
)
def test_code_that_cannot_be_found_or_read_is_named(package: Path, entry_point: str, text: str) -> None:
    (package / "broken.py").write_text("def (")

    with pytest.raises(InvalidEntryPoint, match=text):
        of(entry_point)


def test_a_missing_model_file_and_a_config_that_is_no_json_are_refused(package: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidEntryPoint, match=r"model file .*gone.bin cannot be read: No such file"):
        of(model_files=[tmp_path / "gone.bin"])
    with pytest.raises(InvalidConfig):
        of(config={"x": float("nan")})


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("pipe", "model file .*pipe is not a regular file"),
        ("/dev/zero", "model file /dev/zero is not a regular file"),
        (".", "model file .* is not a regular file"),
        ("a\0b", "model file .* cannot be read: embedded null"),
        ("a\ud800b", "model file .* cannot be read: .*surrogates not allowed"),
    ],
)
def test_a_model_file_that_is_none_is_refused_and_not_read(package: Path, tmp_path: Path, name: str, text: str) -> None:
    """It is read in the product's own process: a pipe or a device would keep the run of every version."""
    os.mkfifo(tmp_path / "pipe")

    with pytest.raises(InvalidEntryPoint, match=text) as refused:
        of(model_files=[tmp_path / name])

    assert str(refused.value).isprintable()  # a database takes it


@pytest.mark.parametrize("code", ["x = " + "a+" * 50_000 + "a\n", "x = " + "-" * 100_000 + "1\n"])
def test_code_that_nests_too_deep_to_be_read_is_refused(package: Path, code: str) -> None:
    (package / "levels.py").write_text(code)

    with pytest.raises(InvalidEntryPoint, match=r"module alpha_owner.levels cannot be read"):
        of()


def test_builds_are_told_by_many_threads_at_once(package: Path) -> None:
    """Fingerprints are taken in threads. A parser that interferes would refuse an unchanged build."""
    (package / "levels.py").write_text("\n".join(f"def f{i}(x):\n    return (x + {i}) * 2" for i in range(200)))
    usual = gc.get_threshold()

    def give_way(_phase: str, _facts: dict[str, int]) -> None:
        sleep(0)

    gc.set_threshold(50)
    gc.callbacks.append(give_way)  # in the midst of parsing, too
    try:
        with ThreadPoolExecutor(4) as threads:
            digests = set(threads.map(lambda _: of().digest, range(8)))
    finally:
        gc.callbacks.remove(give_way)
        gc.set_threshold(*usual)

    assert digests == {of().digest}
