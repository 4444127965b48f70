"""Fingerprint of a version's build: a digest of everything that determines its decisions, and its named parts.

The version's code is read but not imported, because this runs outside the sandbox.
"""

import ast
import json
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import file_digest, sha256
from importlib.machinery import all_suffixes
from importlib.metadata import version
from pathlib import Path
from typing import Any

from strategy_core.domain.errors import InvalidConfig, InvalidEntryPoint
from strategy_core.isolation.protocol import one_line
from strategy_core.strategies.loading import resolve

OURS = "strategy_core"
BUILT_IN = "strategy_core.strategies"
LIBRARIES = ("numpy", "pandas", "ta-lib")
_ONE_PARSER = threading.Lock()  # in Python 3.11 concurrent calls of `ast.parse` interfere


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """*digest* is the sha256 hex of all *parts* (name -> a text, or the sha256 of a file)."""

    digest: str
    parts: dict[str, str]


def fingerprint(
    entry_point: str,
    config: Mapping[str, Any],
    *,
    symbols: Iterable[str],
    timeframe: str,
    warmup_bars: int,
    model_files: Iterable[Path] = (),
) -> Fingerprint:
    """Return the fingerprint of a version as installed on this machine. The same build has the same one everywhere.

    Args:
        entry_point: a known name or `package.module:Class`. A known name has the digest of its class path.
        config: canonical, every default filled (`IsolatedStrategy.describe().config`).
        symbols: in any order.
        timeframe: of its candles.
        warmup_bars: length of its window.
        model_files: identified by content, name and order, but not by folder.

    Raises:
        InvalidEntryPoint: its module or a model file cannot be found or read.
        InvalidConfig: the config is not JSON.
    """
    path = resolve(entry_point)
    parts = {
        "entry_point": path,
        "config": _canonical_json(config, entry_point),
        "symbols": ",".join(sorted(symbols)),
        "timeframe": timeframe,
        "warmup_bars": str(warmup_bars),
        **{library: version(library) for library in LIBRARIES},
        **{f"source of {name}": digest for name, digest in _sources(path.partition(":")[0], entry_point).items()},
    }
    for i, file in enumerate(model_files):
        parts[f"model file {i + 1} {file.name}"] = _file_digest(file, entry_point)
    return Fingerprint(digest_of(parts), parts)


def digest_of(parts: Mapping[str, str]) -> str:
    """Return the sha256 hex of the parts. It is stored with every version, so the formula must not change."""
    return sha256(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def changed_parts(stored_parts: Mapping[str, str], now_parts: Mapping[str, str]) -> list[str]:
    """Return the sorted names of parts that differ or are missing on one side."""
    names = stored_parts.keys() | now_parts.keys()
    return sorted(name for name in names if stored_parts.get(name) != now_parts.get(name))


def _sources(entry_module: str, entry_point: str) -> dict[str, str]:
    """Return module -> sha256 of its file, for all modules of its package that the entry module may import.

    Imports are found anywhere in a file. For built-in strategies only `strategy_core.strategies` counts, so that an
    upgrade of this product does not change every strategy.
    """
    digests: dict[str, str] = {}
    wanted, seen = [entry_module], {entry_module}
    while wanted:
        module = wanted.pop()
        located = _locate(module)
        if located is None and module == entry_module:
            raise InvalidEntryPoint(entry_point, f"no module named {module!r}")
        if located is None or located.file is None or not located.file.is_file():
            continue  # a name inside a module, or a namespace package, which has no code
        content = located.file.read_bytes()
        digests[module] = sha256(content).hexdigest()
        if located.file.suffix == ".py":
            found = set(_imported(content, module, is_package=bool(located.folders), entry_point=entry_point))
            fresh = {name for name in found | set(_parents(module)) if _counts(name, entry_module)} - seen
            seen |= fresh
            wanted += sorted(fresh)
    return digests


def _counts(module: str, entry_module: str) -> bool:
    top = entry_module.partition(".")[0]
    own = BUILT_IN if top == OURS else top
    return module in {entry_module, own} or module.startswith(f"{own}.")


def _parents(module: str) -> Iterator[str]:
    while "." in module:
        module = module.rpartition(".")[0]
        yield module


def _imported(content: bytes, module: str, *, is_package: bool, entry_point: str) -> Iterator[str]:
    """Yield every name in an import statement that could be a module, including names imported from modules."""
    try:
        with _ONE_PARSER:
            tree = ast.parse(content)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # the last two for deep nesting
        raise InvalidEntryPoint(entry_point, f"module {module} cannot be read: {error}") from None
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from (alias.name, *_parents(alias.name))
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, module, is_package=is_package)
            yield from (base, *_parents(base), *(f"{base}.{alias.name}" for alias in node.names))


def _absolute(node: ast.ImportFrom, module: str, *, is_package: bool) -> str:
    if not node.level:
        return node.module or ""
    package = module.split(".") if is_package else module.split(".")[:-1]
    kept = package[: len(package) - node.level + 1]
    return ".".join([*kept, *([node.module] if node.module else [])])


@dataclass(frozen=True, slots=True)
class _Located:
    """The location of a module. *folders* are those of a package, *file* is None for a namespace package."""

    file: Path | None
    folders: tuple[Path, ...] = ()


def _locate(module: str) -> _Located | None:
    """Return the location that import would find, without executing parent packages."""
    top, *names = module.split(".")
    specs = (finder.find_spec(top, None) for finder in sys.meta_path)  # editable installs add finders
    spec = next((found for found in specs if found is not None), None)
    if spec is None:
        return None
    file = Path(spec.origin) if spec.origin else None
    located = _Located(file, tuple(Path(folder) for folder in spec.submodule_search_locations or ()))
    for name in names:
        inner = _locate_in(located.folders, name)
        if inner is None:
            return None
        located = inner
    return located


def _locate_in(folders: Iterable[Path], name: str) -> _Located | None:
    portions = []
    for folder in folders:
        for suffix in all_suffixes():
            if (package := folder / name / f"__init__{suffix}").is_file():
                return _Located(package, (folder / name,))
            if (module := folder / f"{name}{suffix}").is_file():
                return _Located(module)
        if (folder / name).is_dir():
            portions.append(folder / name)
    return _Located(None, tuple(portions)) if portions else None


def _file_digest(file: Path, entry_point: str) -> str:
    name = one_line(file)
    try:
        if file.exists() and not file.is_file():  # reading a device or a pipe may not end
            raise InvalidEntryPoint(entry_point, f"model file {name} is not a regular file")
        with file.open("rb") as opened:
            return file_digest(opened, "sha256").hexdigest()
    except (OSError, ValueError) as error:  # ValueError: not a possible file name
        why = getattr(error, "strerror", None) or error
        raise InvalidEntryPoint(entry_point, f"model file {name} cannot be read: {why}") from None


def _canonical_json(value: Mapping[str, Any], entry_point: str) -> str:
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidConfig(entry_point, [str(error)]) from None
