"""What a PromQL expression reads: the names of metrics, and the labels that it tells their series apart by."""

import re

_TEXT = re.compile(r'"(?:[^"\\]|\\.)*"|\'(?:[^\'\\]|\\.)*\'')
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
_RANGE = re.compile(r"\[[^\]]*\]|\boffset\s+\w+")
_SELECTOR = re.compile(r"\b([a-zA-Z_]\w*)\b(?!\s*\()\s*(?:\{([^}]*)\})?")
_LABEL = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)")
_WORDS = {"and", "or", "unless", "bool"}


def metrics(expression: str) -> dict[str, set[str]]:
    """Return each metric that *expression* reads, with the labels by which it chooses among its series."""
    plain = _GROUPING.sub(" ", _RANGE.sub(" ", _TEXT.sub('""', expression)))
    found: dict[str, set[str]] = {}
    for name, matchers in _SELECTOR.findall(plain):
        if name not in _WORDS:
            found.setdefault(name, set()).update(_LABEL.findall(matchers))
    return found


def grouped(expression: str) -> set[str]:
    """Return the labels that *expression* groups or joins by."""
    plain = _TEXT.sub('""', expression)
    return {label.strip() for labels in _GROUPING.findall(plain) for label in labels.split(",")} - {""}
