"""Route users to versions in the platform's own process, from memory.

    uv run python examples/route_users.py

It registers two versions in a SQLite file, sends a quarter of the users to the second one, and asks a Router.
"""

import os
from collections import Counter

from strategy_core import Router, VersionRegistry

DATABASE = os.environ.get("ROLLOUT_DATABASE_URL", "sqlite:///route_users.db")
USERS = [f"user_{number}" for number in range(1_000)]


def main() -> None:
    registry = VersionRegistry(DATABASE)
    registry.register_version("fib_rsi", "1.0.0", {}, status="active")
    registry.register_version("fib_rsi", "2.0.0", {"rsi_period": 13})
    registry.activate_canary("fib_rsi", "2.0.0", 25, reason="a quarter of the users")

    with Router(DATABASE) as router:  # open one for the life of the process
        print(router.version_for("user_7", "fib_rsi"))
        print(router.explain("user_7", "fib_rsi").why)
        print(sorted(Counter(router.assign(USERS, "fib_rsi")).items()))


if __name__ == "__main__":
    main()
