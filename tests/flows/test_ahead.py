"""A candle run's workers come from a process that started before the run's own imports were done."""

import os
import subprocess
import sys

import pytest

SEEN = """
import sys, {module}
from strategy_core.isolation import forkserver
print(len(forkserver._current), "pandas" in sys.modules)
"""


def seen(module: str, **started: str) -> list[str]:
    command = [sys.executable, "-c", SEEN.format(module=module)]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT__")}
    done = subprocess.run(command, env=clean | started, capture_output=True, text=True, check=True, timeout=120)
    return done.stdout.split()


@pytest.mark.full
@pytest.mark.parametrize(("module", "imported"), [("flows._prestart", "False"), ("flows.shadow", "True")])
def test_it_starts_where_prefect_started_a_process_for_a_run(module: str, imported: str) -> None:
    assert seen(module, PREFECT__FLOW_RUN_ID="0" * 32) == ["1", imported]


@pytest.mark.full
def test_who_merely_lists_the_flows_starts_nothing() -> None:
    assert seen("flows.shadow") == ["0", "True"]


@pytest.mark.full
def test_the_flow_imports_it_before_anything_that_takes_long() -> None:
    order = """
import sys, builtins
seen = []
class First:
    def find_spec(self, name, path=None, target=None):
        if name in ("flows._prestart", "flows.runtime", "sqlalchemy", "pandas"):
            seen.append(name)
sys.meta_path.insert(0, First())
import prefect.engine
import flows.shadow
print(*seen)
"""
    done = subprocess.run([sys.executable, "-c", order], capture_output=True, text=True, check=True, timeout=120)

    assert done.stdout.split()[0] == "flows._prestart"
