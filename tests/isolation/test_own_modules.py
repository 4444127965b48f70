"""A version's own code is found in its files, wherever they lie, and never executed."""

import sys
from pathlib import Path

import pytest

from strategy_core.domain.errors import InvalidEntryPoint
from strategy_core.isolation.fingerprint import own_code, own_modules

EXPLODE = "raise SystemExit('imported')\n"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the search path, as the folder of an owner's scripts is."""
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    return tmp_path


def write(root: Path, **files: str) -> None:
    """Write modules. A double underscore in a name is a slash."""
    for name, code in files.items():
        path = root / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(EXPLODE + code)


def names(entry_module: str) -> list[str]:
    return list(own_modules(entry_module, f"{entry_module}:Alpha"))


def test_the_whole_package_is_own_in_a_fixed_order(root: Path) -> None:
    write(root, alpha__strategy="", alpha__unused="", alpha__deep__inner="", beside="")
    (root / "alpha" / "__init__.py").write_text(EXPLODE)
    (root / "alpha" / "fast.so").write_bytes(b"")
    (root / "alpha" / "fast.py").write_text("")  # hidden by fast.so
    (root / "alpha" / "notes.txt").write_text("")
    for hidden in ("__pycache__", ".git", "venv"):
        write(root / "alpha" / hidden, code="")
    (root / "alpha" / "venv" / "pyvenv.cfg").write_text("")

    found = own_modules("alpha.strategy", "alpha.strategy:Alpha")

    assert list(found) == ["alpha", "alpha.deep.inner", "alpha.fast", "alpha.strategy", "alpha.unused"]
    assert found["alpha.fast"] == root / "alpha" / "fast.so"
    assert "alpha" not in sys.modules


def test_a_folder_that_contains_itself_is_read_once(root: Path) -> None:
    write(root, alpha__strategy="")
    (root / "alpha" / "again").symlink_to(root / "alpha")

    assert names("alpha.strategy") == ["alpha.strategy"]


def test_what_own_code_imports_from_plain_folders_is_own_too(root: Path) -> None:
    write(
        root,
        alpha="def decide():\n    if True: import levels, \\\n        maths as m; from  filters.rsi import f\n",
        levels="import os, json\ntry: import absent\nexcept ImportError: pass\n",
        maths="'''\nimport unrelated\n'''\n",
        filters__rsi="from . import smoothing\n",
        filters__smoothing="import alpha\n",
        filters__unused="import further\n",
        further="",
        unrelated="",
    )

    found = names("alpha")

    inner = ["filters.rsi", "filters.smoothing", "filters.unused"]
    assert found == ["alpha", *inner, "further", "levels", "maths"]


def test_a_module_that_hides_one_of_the_standard_library_is_own(root: Path) -> None:
    write(root, alpha="import statistics, string\n", statistics="")

    assert names("alpha") == ["alpha", "statistics"]


def test_libraries_are_named_by_distribution_and_are_not_own(root: Path) -> None:
    write(root, alpha="import numpy.linalg, talib, yaml, prometheus_client\nfrom strategy_core import Decision\n")

    found = own_code("alpha", "alpha:Alpha")

    assert list(found.modules) == ["alpha"]
    assert found.libraries == {"numpy", "ta-lib", "pyyaml", "prometheus-client"}


def test_an_installed_distribution_is_own_with_all_its_packages(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = root / "site-packages"
    monkeypatch.setattr(sys, "path", [str(site), *sys.path])
    write(site, alpha__strategy="import numpy, by_hand\n", alpha_levels="", by_hand="", other="")
    about = site / "alpha_trading-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: alpha-trading\nVersion: 1.0\n")
    (about / "RECORD").write_text("alpha/strategy.py,,\nalpha_levels.py,,\nalpha_trading-1.0.dist-info/METADATA,,\n")

    found = own_code("alpha.strategy", "alpha.strategy:Alpha")

    assert list(found.modules) == ["alpha.strategy", "alpha_levels", "by_hand"]
    assert found.libraries == {"numpy"}


def test_a_file_that_is_not_valid_python_is_own_and_imports_nothing(root: Path) -> None:
    write(root, alpha__strategy="", alpha__template="import levels\nprint 'of another Python'\n", levels="")

    assert names("alpha.strategy") == ["alpha.strategy", "alpha.template"]


def test_a_change_of_a_file_is_seen(root: Path) -> None:
    write(root, alpha="", levels="")
    before = names("alpha")
    write(root, alpha="import levels\n")
    after = names("alpha")
    (root / "levels.py").unlink()

    assert (before, after, names("alpha")) == (["alpha"], ["alpha", "levels"], ["alpha"])


def test_of_the_product_only_the_strategy_itself_is_own() -> None:
    assert names("strategy_core.strategies.fib_rsi") == ["strategy_core.strategies", "strategy_core.strategies.fib_rsi"]


def test_a_module_that_is_not_there_is_refused(root: Path) -> None:
    with pytest.raises(InvalidEntryPoint, match="no module named 'nowhere'"):
        own_modules("nowhere", "nowhere:Alpha")
