"""`python -m strategy_core.api`: run the server in one process, with settings from the environment only."""

import sys

from strategy_core.api.app import serve
from strategy_core.api.settings import read_api_settings
from strategy_core.domain.errors import RolloutError


def main() -> int:
    """Serve until a signal stops the server, and return the exit code. Errors are one line on standard error."""
    try:
        serve(read_api_settings())
    except RolloutError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
