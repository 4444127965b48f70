"""How many drawn examples a test takes: a few by default, all of them with `-m full`."""

from collections.abc import Sequence

import pytest
from hypothesis import is_hypothesis_test, settings

_SHARE = 5  # by default one example in five
_FULL_EXAMPLES = 100  # of a test that sets no number
_effort = {"full": False}


def choose(config: pytest.Config) -> None:
    """Choose the profile by the marker expression, before any test module is imported."""
    _effort["full"] = config.option.markexpr in ("full", "")
    # No deadline: a busy machine refutes nothing.
    settings.register_profile("default", deadline=None, max_examples=_FULL_EXAMPLES // _SHARE)
    settings.register_profile("full", deadline=None, max_examples=_FULL_EXAMPLES)
    settings.load_profile("full" if _effort["full"] else "default")


def examples(number: int) -> int:
    """Return *number* in a full run, and a share of it by default."""
    return number if _effort["full"] else max(2, number // _SHARE)


def select_drawn(items: Sequence[pytest.Item]) -> None:
    """Let a full run repeat every test that draws examples, with all of them."""
    for item in items if _effort["full"] else ():
        if item.get_closest_marker("drawn") or is_hypothesis_test(getattr(item, "obj", None)):
            item.add_marker(pytest.mark.full)
