"""Ports are taken at once, and one that cannot be had is told with the cure."""

from __future__ import annotations

import socket

import pytest

from servewright_runtime.errors import StartError
from servewright_runtime.supervisor import ports


def test_a_taken_port_is_refused_by_the_next_run_even_before_anyone_serves_on_it() -> None:
    with ports.listen("127.0.0.1", 0, option="--port") as first:
        port = first.getsockname()[1]
        with pytest.raises(StartError, match=f"Port {port} on 127.0.0.1 is in use.*--port") as told:
            ports.listen("127.0.0.1", port, option="--port")
    assert told.value.exit_code == 1


def test_a_port_is_free_again_at_once_after_a_run_that_had_connections() -> None:
    with ports.listen("127.0.0.1", 0, option="--port") as first:
        port = first.getsockname()[1]
        first.setblocking(True)
        with socket.create_connection(("127.0.0.1", port)), first.accept()[0]:
            pass  # the server closes first: its end stays in TIME_WAIT
    ports.listen("127.0.0.1", port, option="--port").close()


@pytest.mark.parametrize("host", ["192.0.2.1", "no such host"])
def test_a_host_that_is_not_of_this_machine_is_refused(host: str) -> None:
    with pytest.raises(StartError, match=r"is no address of this machine.*--host"):
        ports.listen(host, 0, option="--port")


@pytest.mark.parametrize(
    ("host", "shown"),
    [
        ("127.0.0.1", "127.0.0.1"),
        (ports.any_address(has_ipv6=True), "127.0.0.1"),
        (ports.any_address(has_ipv6=False), "127.0.0.1"),
    ],
)
def test_the_url_is_one_that_a_client_on_this_machine_can_use(host: str, shown: str) -> None:
    with ports.listen(host, 0, option="--port") as listener:
        port = listener.getsockname()[1]
        assert ports.url(listener) == f"http://{shown}:{port}"


def test_an_ipv6_address_stands_in_brackets() -> None:
    with ports.listen("::1", 0, option="--port") as listener:
        assert ports.url(listener) == f"http://[::1]:{listener.getsockname()[1]}"


@pytest.mark.parametrize("caller", ["127.0.0.1", "::1"])
def test_any_address_is_of_both_families_where_there_is_ipv6(caller: str) -> None:
    with ports.listen(ports.any_address(has_ipv6=True), 0, option="--port") as listener:
        port = listener.getsockname()[1]
        with socket.create_connection((caller, port), timeout=5):
            pass


def test_any_address_is_of_ipv4_where_there_is_no_ipv6() -> None:
    with ports.listen(ports.any_address(has_ipv6=False), 0, option="--port") as listener:
        assert listener.family == socket.AF_INET
        with socket.create_connection(("127.0.0.1", listener.getsockname()[1]), timeout=5):
            pass


def test_whether_there_is_ipv6_is_asked_of_the_machine() -> None:
    assert (ports.any_address() == "::") == socket.has_dualstack_ipv6()
