"""How numbers are written for a Prometheus: its text format, or OpenMetrics if that is asked for; never what they mean.

Written here because `prometheus_client` takes ten times as long: 0.3 s for the twenty thousand lines of a large
installation, of which a whole scrape may take a third.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from operator import itemgetter
from typing import Literal

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"

_ESCAPED = {"\\": r"\\", "\n": r"\n", '"': r"\""}
_TO_ESCAPE = re.compile(r'[\\\n"]')
_SURROGATE = re.compile("[\ud800-\udfff]")
_WANTS_OPENMETRICS = re.compile(r"application/openmetrics-text\b(?![^,]*;\s*q=0(\.0*)?\s*(,|$))")


@dataclass(frozen=True, slots=True)
class Family:
    """What is exported under one name.

    Attributes:
        name: a counter's ends in `_total`.
        labels: in the order in which samples give their values.
        told: one line for whoever reads the answer.
    """

    name: str
    kind: Literal["counter", "gauge"]
    labels: tuple[str, ...]
    told: str


class Exposition:
    """Samples by family; every family stands in the answer, with samples or without."""

    def __init__(self, families: Iterable[Family]) -> None:
        self._families = list(families)
        self._lines: dict[str, list[str]] = {family.name: [] for family in self._families}
        self._forms = {family.name: _form(family) for family in self._families}
        self._escaped, self._number = _Escaped(), _Number()

    def add(self, name: str, labels: tuple[str, ...], value: float) -> None:
        self.add_all(name, [(labels, value)])

    def add_all(self, name: str, samples: Iterable[tuple[tuple[str, ...], float]]) -> None:
        """Write down many at once: lines, since as many tuples would have Python look for garbage among all it has."""
        line, ordered = self._forms[name]
        safe, number = self._escaped.__getitem__, self._number
        self._lines[name] += [line % (*map(safe, ordered(labels)), number[value]) for labels, value in samples]

    def written(self, media_type: str) -> bytes:
        """Return all of it in the format of *media_type*, TEXT or OPENMETRICS."""
        openmetrics = media_type == OPENMETRICS
        parts = [part for family in self._families for part in (_head(family, openmetrics), *self._lines[family.name])]
        return "".join([*parts, "# EOF\n" if openmetrics else ""]).encode()


def wanted(accept: str) -> str:
    """Return the media type for an `Accept` header; text, unless OpenMetrics is named."""
    return OPENMETRICS if _WANTS_OPENMETRICS.search(accept) else TEXT


class _Escaped(dict[str, str]):
    """Label values as both formats have them, each made once."""

    def __missing__(self, text: str) -> str:
        safe = self[text] = _escaped(text)
        return safe


class _Number(dict[float, str]):
    """Numbers as both formats have them, each made once; what is no number has a capital."""

    def __missing__(self, value: float) -> str:
        text = repr(float(value))
        self[value] = text = _SPECIAL.get(text, text)
        return text


def _form(family: Family) -> tuple[str, Callable[[tuple[str, ...]], tuple[str, ...]]]:
    """Return the line of a sample, to be filled, and what puts its labels into the order of their names."""
    order = sorted(range(len(family.labels)), key=family.labels.__getitem__)
    pairs = ",".join(f'{family.labels[at]}="%s"' for at in order)
    line = f"{family.name}{{{pairs}}} %s\n" if pairs else f"{family.name} %s\n"
    return line, tuple if len(order) < 2 else itemgetter(*order)


def _head(family: Family, openmetrics: bool) -> str:
    about = family.name.removesuffix("_total") if openmetrics and family.kind == "counter" else family.name
    told = _escaped(family.told) if openmetrics else _escaped(family.told).replace(r"\"", '"')
    return f"# HELP {about} {told}\n# TYPE {about} {family.kind}\n"


def _escaped(text: str) -> str:
    return _TO_ESCAPE.sub(lambda found: _ESCAPED[found[0]], _SURROGATE.sub("\ufffd", text))


_SPECIAL: Mapping[str, str] = {"inf": "+Inf", "-inf": "-Inf", "nan": "NaN"}
