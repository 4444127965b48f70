"""Public modules that were renamed can be imported by their old names, with a warning."""

from importlib import import_module

import pytest

from strategy_core.services.live_trades import ingest
from strategy_core.services.users import load_users


@pytest.mark.parametrize(
    ("module", "name", "moved"), [("live", "ingest", ingest), ("directory", "load_users", load_users)]
)
def test_the_old_name_still_works(module: str, name: str, moved: object) -> None:
    old = import_module(f"strategy_core.services.{module}")

    with pytest.warns(DeprecationWarning, match=f"strategy_core.services.{module} is now strategy_core.services"):
        found = getattr(old, name)

    assert found is moved
