"""Imported first by a candle run: the process that its workers are forked from starts while the rest is being imported.

That is half a second of every minute's run. Only in a process that Prefect started for a run: whoever lists the flows,
or calls one within another process, may ask no version anything.
"""

import contextlib
import os

from strategy_core.isolation.nursery import nursery

if "PREFECT__FLOW_RUN_ID" in os.environ:
    with contextlib.suppress(OSError):  # the first worker tries again, and a version that cannot be asked is told of
        nursery()
