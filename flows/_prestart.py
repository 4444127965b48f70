"""Start the fork server before the slow imports of a candle run."""

import contextlib
import os

from strategy_core.isolation.forkserver import fork_server

if "PREFECT__FLOW_RUN_ID" in os.environ:
    with contextlib.suppress(OSError):  # the first worker starts it again, and reports it if that fails too
        fork_server()
