"""JSON that people and programs hand in: what is refused before anybody looks at what it says."""

from collections import Counter
from collections.abc import Sequence
from typing import Any


def each_name_once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of JSON, as `object_pairs_hook` of `json.loads`; of two values for a name neither is taken.

    Raises:
        ValueError: a name stands there twice.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        times = Counter(name for name, _ in pairs)
        raise ValueError(f"{next(name for name in times if times[name] > 1)!a} stands there twice")
    return found
