"""`python -m strategy_core.api`: the server in one process, by the settings of the environment alone."""

import sys

from strategy_core.api.app import serve
from strategy_core.api.settings import read_api_settings
from strategy_core.domain.errors import RolloutError


def main() -> int:
    """Serve until a signal ends it, and return the exit code; a refusal is one line on standard error."""
    try:
        serve(read_api_settings())
    except RolloutError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
