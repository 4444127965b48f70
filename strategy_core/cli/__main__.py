"""Run the `rollout` command as `python -m strategy_core.cli`."""

import sys

from strategy_core.cli import main

sys.exit(main())
