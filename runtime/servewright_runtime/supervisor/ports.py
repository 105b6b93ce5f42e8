"""The ports of a run, taken before anything slow begins."""

from __future__ import annotations

import errno
import os
import socket

from servewright_runtime.errors import StartError

_BACKLOG = 2048  # connections; the kernel lowers it to its somaxconn


def any_address(*, has_ipv6: bool | None = None) -> str:
    """The host that takes calls to any address, over IPv6 too where the machine has it."""
    if has_ipv6 is None:
        has_ipv6 = socket.has_dualstack_ipv6()
    return "::" if has_ipv6 else "0.0.0.0"  # noqa: S104 - what is asked for


def listen(host: str, port: int, *, option: str) -> socket.socket:
    """A listening TCP socket. `option` is the flag that chooses the port, for the message.

    On `::` it takes IPv4 too, whatever the machine's default (net.ipv6.bindv6only).

    It listens at once: Linux lets two sockets that merely are bound share a port, and the second
    run would fail only when its model is loaded.
    Raises StartError, with the cure, when the port cannot be had.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind)
    except socket.gaierror as error:
        raise StartError(
            f"{host!r} is no address of this machine: {error.strerror}; give --host one that is, "
            "such as 127.0.0.1."
        ) from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if host == "::":
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise StartError(_why(error, host, port, option), reason="PortUnavailable") from error
    listener.setblocking(False)
    return listener


def _why(error: OSError, host: str, port: int, option: str) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"Port {port} on {host} is in use by another process; stop it or choose another port "
            f"with {option}."
        )
    if error.errno == errno.EACCES:
        return f"Port {port} needs privileges; choose one above 1023 with {option}."
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{host} is no address of this machine; give --host one that is, such as 127.0.0.1."
    return f"Port {port} on {host} cannot be opened: {os.strerror(error.errno or 0)}."


def url(listener: socket.socket) -> str:
    """Where a client on this machine reaches the listener."""
    host, port = loopback_of(listener)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def loopback_of(listener: socket.socket) -> tuple[str, int]:
    """Host and port to connect to from this machine, also where the listener takes any address.

    Any machine has 127.0.0.1, even where nothing else is IPv4; ::1 is missing where IPv6 is off.
    """
    host, port = listener.getsockname()[:2]
    return "127.0.0.1" if host in ("0.0.0.0", "::") else host, port  # noqa: S104
