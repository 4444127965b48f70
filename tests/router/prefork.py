"""A server that opens its router first and forks then; each process says which version it tells when that changes."""

import os
import sys
import time

from strategy_core import Router

CHILDREN = 3
DEADLINE_S = 60.0


def main(database_url: str) -> None:
    router = Router(database_url)
    children = []
    for _ in range(CHILDREN):
        child = os.fork()
        if child == 0:
            watch(router)
            os._exit(0)
        children.append(child)
    watch(router)
    for child in children:
        os.waitpid(child, 0)


def watch(router: Router) -> None:
    was = router.generation("fib_rsi")
    say(f"sees {was}")
    deadline = time.monotonic() + DEADLINE_S
    while router.generation("fib_rsi") == was and time.monotonic() < deadline:
        time.sleep(0.005)
    say(f"sees {router.generation('fib_rsi')} {router.version_for('user_1', 'fib_rsi')}")
    router.close()


def say(text: str) -> None:
    os.write(1, f"{text}\n".encode())


if __name__ == "__main__":
    main(sys.argv[1])
