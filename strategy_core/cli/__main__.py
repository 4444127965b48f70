"""`python -m strategy_core.cli`: the `rollout` command where no script is on the path."""

import sys

from strategy_core.cli import main

sys.exit(main())
