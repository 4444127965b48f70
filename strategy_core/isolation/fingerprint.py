"""Fingerprint of a version's build: a digest of everything that determines its decisions, and its named parts.

The version's code is read but not imported, because this runs outside the sandbox.

Schema 2 covers all of a version's own code, the libraries that it imports, and Python's minor version. Schema 1 covered
what its entry module may import of its own package, and three libraries. A version keeps its schema for life.
"""

import ast
import json
import os
import re
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, lru_cache
from hashlib import file_digest, sha256
from importlib.machinery import BYTECODE_SUFFIXES, EXTENSION_SUFFIXES, SOURCE_SUFFIXES, all_suffixes
from importlib.metadata import Distribution, PackageNotFoundError, distribution, distributions, version
from importlib.util import decode_source
from pathlib import Path
from typing import Any, Self
from unicodedata import normalize

from strategy_core.domain.errors import InvalidConfig, InvalidEntryPoint, reason_of
from strategy_core.isolation.protocol import one_line
from strategy_core.strategies.loading import resolve

SCHEMA = "2"
_MODEL_FILE = "model file "
OURS = "strategy_core"
BUILT_IN = "strategy_core.strategies"
LIBRARIES = ("numpy", "pandas", "ta-lib")
_PROVIDER = {"numpy": "numpy", "pandas": "pandas", "talib": "ta-lib"}
_PRODUCT = {OURS, "flows", "deployments"}
_PRODUCT_FOLDER = Path(__file__).parents[2]
_INSTALLED = {"site-packages", "dist-packages"}
_SUFFIXES = (*EXTENSION_SUFFIXES, *SOURCE_SUFFIXES, *BYTECODE_SUFFIXES)  # in the order of import
_GAP = r"(?:[ \t\f]|\\\r?\n)"
_DOTTED = rf"[^\W\d]\w*(?:{_GAP}*\.{_GAP}*\w+)*"
_RENAMED = rf"{_DOTTED}(?:{_GAP}+as{_GAP}+\w+)?"
_IMPORT = re.compile(  # a statement begins a line, or follows a semicolon or a colon. A text may match too
    rf"(?:^|[;:]){_GAP}*(?:from{_GAP}+(?P<base>{_DOTTED})"
    rf"|import{_GAP}+(?P<names>{_RENAMED}(?:{_GAP}*,{_GAP}*{_RENAMED})*))",
    re.MULTILINE,
)
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
    toggles: str = "",
    schema: str = SCHEMA,
) -> Fingerprint:
    """Return the fingerprint of a version as installed on this machine. The same build has the same one everywhere.

    Args:
        entry_point: a known name or `package.module:Class`. A known name has the digest of its class path.
        config: canonical, every default filled (`IsolatedStrategy.describe().config`).
        symbols: in any order.
        timeframe: of its candles.
        warmup_bars: length of its window.
        model_files: identified by content, name and order, but not by folder.
        toggles: the declaration of its toggles. Without any it has no part, as before there were toggles.
        schema: "1" for a version that was registered before schema 2 (see `schema_of`).

    Raises:
        InvalidEntryPoint: its module or a model file cannot be found or read.
        InvalidConfig: the config is not JSON.
    """
    path = resolve(entry_point)
    module = path.partition(":")[0]
    code = OwnCode(_reachable(module, entry_point), frozenset()) if schema == "1" else own_code(module, entry_point)
    installed = _search_path()
    parts = {
        "entry_point": path,
        "config": _canonical_json(config, entry_point),
        "symbols": ",".join(sorted(symbols)),
        "timeframe": timeframe,
        "warmup_bars": str(warmup_bars),
        **{library: _version(library, installed) for library in LIBRARIES},
        **{f"source of {name}": _file_digest(file, entry_point) for name, file in code.modules.items()},
    }
    if schema != "1":
        parts |= {"schema": SCHEMA, "python": f"{sys.version_info.major}.{sys.version_info.minor}"}
        parts |= {f"library {name}": _version(name, installed) for name in code.libraries.difference(LIBRARIES)}
    parts |= model_file_parts(model_files, entry_point)
    if toggles:
        parts["toggles"] = toggles
    return Fingerprint(digest_of(parts), parts)


def model_file_parts(files: Iterable[Path], entry_point: str) -> dict[str, str]:
    """Return the parts about model files.

    Raises:
        InvalidEntryPoint: one of them cannot be read.
    """
    return {
        f"{_MODEL_FILE}{number} {file.name}": _file_digest(file, entry_point, "model file")
        for number, file in enumerate(files, 1)
    }


def registered_model_files(parts: Mapping[str, str]) -> dict[str, str]:
    """Return those of a version's *parts* that are about model files."""
    return {name: digest for name, digest in parts.items() if name.startswith(_MODEL_FILE)}


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A file that a version declares. *fingerprint* is the SHA-256 of its content at registration."""

    name: str
    fingerprint: str


def list_model_files(parts: Mapping[str, str]) -> list[ModelFile]:
    """Return the model files among a version's *parts*, in the order in which it declares them."""
    found = []
    for part, digest in registered_model_files(parts).items():
        number, _, name = part.removeprefix(_MODEL_FILE).partition(" ")
        found.append((int(number), ModelFile(name, digest)))
    return [file for _, file in sorted(found, key=lambda each: each[0])]


def schema_of(parts: Mapping[str, str]) -> str:
    """Return the schema of a registered version's parts."""
    return parts.get("schema", "1")


def digest_of(parts: Mapping[str, str]) -> str:
    """Return the sha256 hex of the parts. It is stored with every version, so the formula must not change."""
    return sha256(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def changed_parts(stored_parts: Mapping[str, str], now_parts: Mapping[str, str]) -> list[str]:
    """Return the sorted names of parts that differ or are missing on one side."""
    names = stored_parts.keys() | now_parts.keys()
    return sorted(name for name in names if stored_parts.get(name) != now_parts.get(name))


@dataclass(frozen=True, slots=True)
class _File:
    """The state of a file or folder, so that it is read again after a change."""

    path: Path
    mtime_ns: int
    size: int

    @classmethod
    def now(cls, path: Path) -> Self:
        found = path.stat()
        return cls(path, found.st_mtime_ns, found.st_size)


@dataclass(frozen=True, slots=True)
class OwnCode:
    """A version's own *modules* (name -> file, sorted), and the *libraries* that they import, by distribution name."""

    modules: dict[str, Path]
    libraries: frozenset[str]


def own_modules(entry_module: str, entry_point: str) -> dict[str, Path]:
    """Return module -> file for every module of the version's own code, sorted by name. Nothing is imported.

    Own are all modules of the entry module's top-level package, and of its distribution if it is installed. So are all
    modules of top-level packages that these files import, and so on. The standard library, this product and
    distributions in a site-packages folder are not own. Of this product only `strategy_core.strategies` can be own, and
    only what the entry module imports, so that an upgrade of this product does not change every strategy.

    Raises:
        InvalidEntryPoint: there is no such module, or its imports cannot be read.
    """
    return own_code(entry_module, entry_point).modules


def own_code(entry_module: str, entry_point: str) -> OwnCode:
    """Return the modules of `own_modules`, and the installed distributions that they import."""
    found = _reachable(entry_module, entry_point)
    top = entry_module.partition(".")[0]
    wanted: list[str] = []
    if top != OURS:
        wanted, found = _tops_beside(top), {}
    modules: dict[str, Path] = {}
    libraries: set[str] = set()
    settled = set(wanted)
    providers_of = cache(_providers)
    try:
        while found or wanted:
            found = found or _tree(wanted.pop())
            modules |= found
            for module, file in found.items():
                for name in sorted(_possible_tops(file) - settled):
                    providers = providers_of(name)
                    if providers == () or name in _tops(file, module, entry_point):
                        settled.add(name)
                        libraries.update(providers or ())
                        wanted += [name] if providers is None else []
            found = {}
    except OSError as error:
        raise InvalidEntryPoint(entry_point, f"{one_line(error.filename)} cannot be read: {error.strerror}") from None
    return OwnCode(dict(sorted(modules.items())), frozenset(libraries))


def _tops_beside(top: str) -> list[str]:
    """Return *top*, and the other top-level modules of its distribution if that is installed."""
    tops = {top}
    for name in _providers(top) or ():
        for path in distribution(name).files or ():
            module = _module_name(path.name)
            if module is not None and path.parts[0] not in {"..", "__pycache__"}:
                tops.add(path.parts[0] if len(path.parts) > 1 else module)
    return sorted(tops)


def _providers(top: str) -> tuple[str, ...] | None:
    """Return the installed distributions of a top-level module, or None if it is own code.

    The standard library, this product and a module that does not exist have none.
    """
    located = _locate(top)
    places = [] if located is None else [*located.folders, *([located.file] if located.file else [])]
    if not places or _is_standard(top, places[0]) or _is_product(top, places[0]):
        return ()
    if not _INSTALLED.intersection(places[0].parts):
        return None
    return _distributions_of(top) or None


def _is_standard(top: str, place: Path) -> bool:
    if top not in sys.stdlib_module_names:
        return False
    return not place.is_absolute() or place.is_relative_to(Path(os.__file__).parent)  # else another module hides it


def _is_product(top: str, place: Path) -> bool:
    return top in _PRODUCT and place.is_relative_to(_PRODUCT_FOLDER)


def _distributions_of(top: str) -> tuple[str, ...]:
    return (_PROVIDER[top],) if top in _PROVIDER else _found_distributions(top, _search_path())


def _search_path() -> tuple[_File, ...]:
    """Return the state of the folders in which distributions lie. Installing anything changes it."""
    return tuple(_File.now(Path(entry)) for entry in sys.path if Path(entry).is_dir())


@lru_cache(maxsize=10_000)
def _found_distributions(top: str, search_path: tuple[_File, ...]) -> tuple[str, ...]:
    with suppress(PackageNotFoundError):  # most distributions have the name of their module
        if f"\n{top}/" in f"\n{distribution(top).read_text('RECORD')}":
            return (_distribution_name(top),)
    return tuple(sorted({_distribution_name(each.name) for each in _installed(search_path).get(top, ())}))


@lru_cache(maxsize=10_000)
def _version(name: str, search_path: tuple[_File, ...]) -> str:  # noqa: ARG001  the key of the cache
    return version(name)


@lru_cache(maxsize=4)
def _installed(search_path: tuple[_File, ...]) -> dict[str, list[Distribution]]:  # noqa: ARG001  the key of the cache
    """Return top-level module -> distributions, as `packages_distributions` does in ten times the time."""
    found: dict[str, list[Distribution]] = {}
    for each in distributions():
        declared = (each.read_text("top_level.txt") or "").split()
        for top in set(declared) or _recorded_tops(each):
            found.setdefault(top, []).append(each)
    return found


def _recorded_tops(installed: Distribution) -> set[str]:
    record = installed.read_text("RECORD")
    files = [str(file) for file in installed.files or ()] if record is None else record.splitlines()
    paths = (line.partition(",")[0].partition("/") for line in files)
    tops = (first if slash else _module_name(first) for first, slash, _ in paths)
    return {top for top in tops if top is not None and top.isidentifier()}


def _distribution_name(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _tree(top: str) -> dict[str, Path]:
    """Return the modules of a top-level package, or the one file of a top-level module."""
    located = _locate(top)
    if located is None:
        return {}
    found = {top: located.file} if located.file is not None and located.file.is_file() else {}
    for folder in located.folders:
        for module, file in _modules_below(folder, top, frozenset()):
            found.setdefault(module, file)
    return found


def _modules_below(folder: Path, package: str, outer: frozenset[Path]) -> Iterator[tuple[str, Path]]:
    """Yield (module, file) of everything that could be imported from *folder*, in the order of preference."""
    inside = outer | {folder.resolve()}
    entries = sorted(folder.iterdir())
    for entry in entries:
        closed = entry.name in {"__pycache__", *_INSTALLED} or "." in entry.name or (entry / "pyvenv.cfg").exists()
        closed = closed or entry.is_symlink()  # it may lead anywhere
        if not closed and entry.is_dir() and entry.resolve() not in inside:
            yield from _modules_below(entry, f"{package}.{entry.name}", inside)
    for suffix in _SUFFIXES:
        for entry in entries:
            name = _module_name(entry.name, [suffix])
            if name is not None and entry.is_file():
                yield package if name == "__init__" else f"{package}.{name}", entry


def _module_name(file_name: str, suffixes: Iterable[str] = _SUFFIXES) -> str | None:
    stems = (file_name.removesuffix(suffix) for suffix in suffixes if file_name.endswith(suffix))
    return next((stem for stem in stems if stem and "." not in stem), None)


def _possible_tops(file: Path) -> frozenset[str]:
    """Return the top-level names that the file's text seems to import: all that it does, and words of its texts."""
    return _searched(_File.now(file)) if file.suffix == ".py" else frozenset()


def _tops(file: Path, module: str, entry_point: str) -> frozenset[str]:
    """Return the top-level names that the file imports, none if it is not valid Python."""
    try:
        return frozenset(name.partition(".")[0] for name in _imported(file, module))
    except (SyntaxError, ValueError):
        return frozenset()
    except (RecursionError, MemoryError) as error:  # it nests too deep for this parser, but may still be importable
        raise _unreadable(module, entry_point, error) from None


@lru_cache(maxsize=10_000)
def _searched(file: _File) -> frozenset[str]:
    try:
        text = decode_source(file.path.read_bytes())
    except (SyntaxError, ValueError):  # of its encoding
        return frozenset()
    firsts = [first for base, names in _IMPORT.findall(text) for first in ([base] if base else names.split(","))]
    return frozenset(normalize("NFKC", name) for first in firsts for name in re.findall(r"\w+", first)[:1])


def _reachable(entry_module: str, entry_point: str) -> dict[str, Path]:
    """Return module -> file for all modules of its package that the entry module may import.

    Imports are found anywhere in a file. Of this product only `strategy_core.strategies` counts.
    """
    files: dict[str, Path] = {}
    wanted, seen = [entry_module], {entry_module}
    while wanted:
        module = wanted.pop()
        located = _locate(module)
        if located is None and module == entry_module:
            raise InvalidEntryPoint(entry_point, f"no module named {module!r}")
        if located is None or located.file is None or not located.file.is_file():
            continue  # a name inside a module, or a namespace package, which has no code
        files[module] = located.file
        if located.file.suffix == ".py":
            try:
                found = _imported(located.file, module) | set(_parents(module))
            except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # the last two for deep nesting
                raise _unreadable(module, entry_point, error) from None
            fresh = {name for name in found if _counts(name, entry_module)} - seen
            seen |= fresh
            wanted += sorted(fresh)
    return files


def _counts(module: str, entry_module: str) -> bool:
    top = entry_module.partition(".")[0]
    own = BUILT_IN if top == OURS else top
    return module in {entry_module, own} or module.startswith(f"{own}.")


def _parents(module: str) -> Iterator[str]:
    while "." in module:
        module = module.rpartition(".")[0]
        yield module


def _imported(file: Path, module: str) -> frozenset[str]:
    """Return every name in an import statement that could be a module, including names imported from modules."""
    return _parsed(_File.now(file), module)


@lru_cache(maxsize=10_000)
def _parsed(file: _File, module: str) -> frozenset[str]:
    with _ONE_PARSER:
        tree = ast.parse(file.path.read_bytes())
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(name for alias in node.names for name in (alias.name, *_parents(alias.name)))
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, module, is_package=file.path.stem == "__init__")
            names.update((base, *_parents(base), *(f"{base}.{alias.name}" for alias in node.names)))
    return frozenset(names)


def _unreadable(module: str, entry_point: str, error: Exception) -> InvalidEntryPoint:
    return InvalidEntryPoint(entry_point, f"module {module} cannot be read: {reason_of(error)}")


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


def _file_digest(file: Path, entry_point: str, what: str = "file") -> str:
    name = f"{what} {one_line(file)}"
    try:
        if file.exists() and not file.is_file():  # reading a device or a pipe may not end
            raise InvalidEntryPoint(entry_point, f"{name} is not a regular file")
        with file.open("rb") as opened:
            return file_digest(opened, "sha256").hexdigest()
    except (OSError, ValueError) as error:  # ValueError: not a possible file name
        why = getattr(error, "strerror", None) or error
        raise InvalidEntryPoint(entry_point, f"{name} cannot be read: {why}") from None


def _canonical_json(value: Mapping[str, Any], entry_point: str) -> str:
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidConfig(entry_point, [str(error)]) from None


SQLITE_HEADER = b"SQLite format 3\x00"


def check_model_files(
    entry_point: str, files: Iterable[Path], modules: Mapping[str, Path], config: Mapping[str, Any]
) -> None:
    """Raise InvalidEntryPoint for a file that a version may not declare, since its worker could then read it.

    Allowed are files beside its own modules, and files that its config names or that lie in a folder that its config
    names. Hidden files and SQLite databases are never model files.
    """
    named = {Path(text).resolve() for text in _texts(config) if text and "\x00" not in text} - {Path("/"), Path.cwd()}
    beside = {file.resolve().parent for file in modules.values()}
    for file in files:
        real = file.resolve()
        if real.parent not in beside and not any(map(real.is_relative_to, named)):
            why = "it is neither beside the version's modules nor under a path that its config names"
        elif real.name.startswith("."):
            why = "it is a hidden file"
        elif _is_database(real):
            why = "it is a database"
        else:
            continue
        raise InvalidEntryPoint(entry_point, f"{one_line(file)} may not be a model file: {why}")


def _is_database(file: Path) -> bool:
    try:
        with file.open("rb") as opened:
            return opened.read(len(SQLITE_HEADER)) == SQLITE_HEADER
    except (OSError, ValueError):
        return False  # the fingerprint reports a file that cannot be read


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)
