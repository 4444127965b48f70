"""Run `rollout ARGUMENTS` and `python FILE` in forks of one process that has imported the libraries already.

`python preloaded.py SOCKET` serves. `python preloaded.py SOCKET COMMAND ARGUMENTS` runs a command with the caller's
folder, environment and standard streams. A start then costs milliseconds instead of seconds.
"""

import gc
import json
import os
import runpy
import socket
import sys
from importlib import import_module
from pathlib import Path

PRELOADED = (
    "alembic.command",
    "strategy_core.registry",
    "strategy_core.settings",
    "strategy_core.shadow_executor",
    "strategy_core.router.router",
    "strategy_core.cli",
)
BACKLOG = 8


def serve(address: str) -> None:
    for module in PRELOADED:
        import_module(module)
    gc.freeze()  # a fork that ends would otherwise copy and collect all of it: 0.7 s
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(address)
        listening.listen(BACKLOG)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        while True:
            caller, _ = listening.accept()
            with caller:
                request, streams, _, _ = socket.recv_fds(caller, 1 << 20, 3)
                if child := os.fork():
                    for stream in streams:
                        os.close(stream)
                    _, status = os.waitpid(child, 0)
                    caller.sendall(str(os.waitstatus_to_exitcode(status)).encode())
                    continue
                for number, stream in enumerate(streams):
                    os.dup2(stream, number)
            listening.close()
            (command, *arguments), folder, environment = json.loads(request)
            os.chdir(folder)
            os.environ.clear()
            os.environ.update(environment)
            if command == "rollout":
                sys.exit(sys.modules["strategy_core.cli"].main(arguments))
            sys.argv[:] = arguments
            sys.path.insert(0, str(Path(arguments[0]).parent.absolute()))
            runpy.run_path(arguments[0], run_name="__main__")
            sys.exit()


def call(address: str, command: list[str]) -> int:
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(address)
        request = json.dumps([command, str(Path.cwd()), dict(os.environ)])
        socket.send_fds(server, [request.encode()], [0, 1, 2])
        return int(server.recv(8))


if __name__ == "__main__":
    if len(sys.argv) > 2:
        sys.exit(call(sys.argv[1], sys.argv[2:]))
    serve(sys.argv[1])
