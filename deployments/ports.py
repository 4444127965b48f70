"""Ports of this machine for processes of ours: one that is free, and kept from the next `rollout up` until ours has it.

It never listens on one: that is the process's own.
"""

import socket
from contextlib import ExitStack

from strategy_core.domain.errors import InvalidSetting

HOST = "127.0.0.1"  # nobody else's business: the server has no password


def keep_port(stack: ExitStack, wanted: int = 0) -> int:
    """Return *wanted* if it is free, else any that is; no other call returns it until *stack* is closed.

    Seconds pass before a process listens on its port. Until then the same number among UDP ports says who has it: that
    is given back however whoever keeps it ends, and never lingers as a port that was listened on does.
    """
    for port in (wanted, *[0] * 8):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server will: one that has just ended
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
    raise InvalidSetting("port", wanted, "one that is free; none is")
