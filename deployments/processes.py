"""Child processes of `rollout up`, their ports, and the addresses and the password of its Prefect server."""

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

from strategy_core.domain.errors import InvalidSetting

OPEN = "/open"  # page of the Prefect server that signs in to its UI
HOST = "127.0.0.1"  # loopback only: passwords would cross a network in plain text
PATIENCE_S = 15.0
_TAIL_LINES = 15
_TETHER = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    if os.getppid() != int(sys.argv[1]):
        sys.exit("the parent process has ended")
os.execv(sys.argv[2], sys.argv[2:])
"""


class ChildEnded(Exception):
    """A child process ended by itself. The text names it and holds the end of its log."""


class Child:
    """A running process with a process group of its own, so that Ctrl-C reaches it only through `stop`.

    On Linux it gets SIGTERM when the thread that started it ends, also if that thread is killed.

    Attributes:
        name: how messages call it.
        log: the file with its standard output and standard error.
    """

    def __init__(self, name: str, command: Sequence[str], *, environment: Mapping[str, str], log: Path) -> None:
        self.name = name
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w") as output:
            self._popen = subprocess.Popen(  # noqa: S603  our own interpreter and modules
                [sys.executable, "-IS", "-c", _TETHER, str(os.getpid()), *command],
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def exit_code(self) -> int | None:
        """The exit code, or None while it runs."""
        return self._popen.poll()

    def check(self) -> None:
        """Raise ChildEnded if it does not run any more."""
        if self.exit_code is not None:
            raise ChildEnded(self.last_words(f"ended with exit code {self.exit_code}"))

    def last_words(self, what: str) -> str:
        """Return one line about *what* happened, followed by the end of the log."""
        return f"{self.name} {what}. The end of {self.log}:\n{self.tail()}"

    def tail(self) -> str:
        """Return the last lines of the log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-_TAIL_LINES:])

    def stop(self) -> None:
        """Send SIGTERM, wait up to `PATIENCE_S`, then kill what is left of its process group."""
        if self.exit_code is None:
            self._popen.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(PATIENCE_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._popen.wait()


def keep_port(stack: ExitStack, wanted: int = 0) -> int:
    """Reserve the TCP port *wanted*, or another free one, until *stack* is closed.

    A child takes seconds until it listens on its port. Until then the UDP port of the same number marks it as taken for
    other calls: the system frees a UDP port as soon as its process ends.
    """
    for port in (wanted, *[0] * 8):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the servers do
            kept = socket.socket(type=socket.SOCK_DGRAM)
            try:
                probe.bind((HOST, port))
                found: int = probe.getsockname()[1]
                kept.bind((HOST, found))
            except OSError:
                kept.close()
                continue
            stack.callback(kept.close)
            return found
    raise InvalidSetting("port", wanted, "a free port, but there is none")


def addresses(port: int, ui_url: str | None) -> list[str]:
    """Return the addresses at which a browser may use the server: of this machine, and the one of the settings."""
    suffix = "" if port == 80 else f":{port}"
    own = [f"http://{host}{suffix}" for host in ("127.0.0.1", "localhost")]
    if ui_url is None:
        return own
    parts = urlsplit(ui_url)
    return [*own, f"{parts.scheme}://{parts.netloc}"]


def password(file: Path) -> str:
    """Return the user and password that the file holds. A new one is random and readable by its owner alone."""
    if not file.exists():
        file.touch(mode=0o600)
        file.write_text(f"owner:{secrets.token_urlsafe(24)}\n")
    return file.read_text().strip()
