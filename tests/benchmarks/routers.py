"""Many router processes that tell, each for itself, when the version they answer with has changed."""

import os
import signal
import sys
import time

from strategy_core import Router

ASK_S = 0.005


def main(address: str, token: str, strategy_name: str, processes: int) -> None:
    """Fork *processes*, each with a router of its own, which write `process version nanoseconds` on a change."""
    children = []
    for number in range(processes):
        child = os.fork()
        if child == 0:
            try:
                watch(open_router(address, token), strategy_name, number)
            finally:
                os._exit(1)
        children.append(child)
    sys.stdin.read()  # until the benchmark ends, or dies
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def open_router(address: str, token: str) -> Router:
    return Router(api_url=address, token=token or None) if address.startswith("http") else Router(address)


def watch(router: Router, strategy_name: str, number: int) -> None:
    parent, was = os.getppid(), ""
    while os.getppid() == parent:
        version = router.version_for("user_1", strategy_name)
        if version != was:
            os.write(1, f"{number} {version} {time.monotonic_ns()}\n".encode())
            was = version
        time.sleep(ASK_S)


if __name__ == "__main__":
    Router  # noqa: B018  imported before the forks, so that they share its memory
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
