"""Take a version from registration to users and back, from Python.

    uv run python examples/whole_lifecycle.py

This sets the shares by hand. A rollout with a plan and gates starts with `rollout start`, the API or a form in Prefect.
"""

import os

from strategy_core import RolloutError, VersionRegistry

DATABASE = os.environ.get("ROLLOUT_DATABASE_URL", "sqlite:///whole_lifecycle.db")


def main() -> None:
    registry = VersionRegistry(DATABASE)

    def show(step: str) -> None:
        versions = {each.version: str(each.status) for each in registry.list_versions("fib_rsi")}
        print(f"{step}: {versions}, user_123 gets {registry.route_user_to_version('user_123', 'fib_rsi')}")

    registry.register_version("fib_rsi", "1.0.0", {}, status="active", reason="the first version")
    registry.register_version("fib_rsi", "2.0.0", {"fib_lookback_bars": 60}, reason="longer look-back")
    show("registered")

    try:
        registry.register_version("fib_rsi", "2.0.0", {"fib_lookback_bars": 70})
    except RolloutError as error:
        print(f"refused: {error}")

    registry.activate_canary("fib_rsi", "2.0.0", 5)
    show("canary at 5 %")
    registry.update_canary_percent("fib_rsi", 60)
    show("canary at 60 %")

    registry.activate_version("fib_rsi", "2.0.0", reason="as good, and calmer")
    show("promoted")
    registry.activate_version("fib_rsi", "1.0.0", reason="second thoughts")
    show("rolled back")


if __name__ == "__main__":
    main()
