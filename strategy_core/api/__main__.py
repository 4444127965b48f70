"""`python -m strategy_core.api`: the server, by the settings of the environment."""

import sys

from strategy_core.cli import main

if __name__ == "__main__":
    sys.exit(main(["api", *sys.argv[1:]]))
