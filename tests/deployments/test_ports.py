"""A port is given to one process alone, although seconds pass before that process listens on it."""

import socket
from contextlib import ExitStack

from deployments.processes import HOST, keep_port


def free_port() -> int:
    with ExitStack() as stack:
        return keep_port(stack)


def test_a_port_that_is_kept_goes_to_nobody_else_though_nobody_listens_on_it() -> None:
    wanted = free_port()
    with ExitStack() as first, ExitStack() as second:
        kept = keep_port(first, wanted)

        other = keep_port(second, wanted)

    assert kept == wanted != other


def test_a_port_is_given_again_once_it_is_kept_no_more() -> None:
    wanted = free_port()
    with ExitStack() as stack:
        keep_port(stack, wanted)

    with ExitStack() as stack:
        assert keep_port(stack, wanted) == wanted


def test_a_port_that_is_listened_on_is_passed_over() -> None:
    with socket.create_server((HOST, 0)) as server, ExitStack() as stack:
        taken = server.getsockname()[1]

        assert keep_port(stack, taken) != taken


def test_its_own_process_can_listen_on_a_kept_port() -> None:
    with ExitStack() as stack, socket.create_server((HOST, keep_port(stack))) as server:
        assert server.getsockname()[0] == HOST
