"""Where the sockets of probes come from: the one seam between how to ask and which way to go.

A probe of any kind opens its sockets by ``open_socket`` and knows no more. Each target's task says
once which ``Dial`` is its own; a context variable carries it, so that no exchange has to.
"""

from __future__ import annotations

import socket
from contextvars import ContextVar
from typing import Final, Protocol

from lb_xdp.core.model import IPV6, Address


class Dial(Protocol):
    """Opens sockets for the probes of one target, and says what a failure means on its way."""

    def open(
        self, family: socket.AddressFamily, kind: socket.SocketKind, protocol: int
    ) -> socket.socket:
        """Return a non-blocking socket, not connected. Raises OSError."""

    def explain(self, port: int, detail: str) -> str:
        """Return the detail of a failed probe of ``port``, with what the way adds to it."""


class Direct:
    """To the address itself, as any program's connection."""

    def open(
        self, family: socket.AddressFamily, kind: socket.SocketKind, protocol: int
    ) -> socket.socket:
        """Return a plain socket."""
        return socket.socket(family, kind | socket.SOCK_NONBLOCK, protocol)

    def explain(self, _port: int, detail: str) -> str:
        """Return the detail as it is."""
        return detail


_dial: Final[ContextVar[Dial]] = ContextVar("dial", default=Direct())  # noqa: B039 - it has no state


def use(dial: Dial) -> None:
    """Have all probes of the present task, and of tasks that it starts, go this way."""
    _dial.set(dial)


def open_socket(address: Address, kind: socket.SocketKind, protocol: int = 0) -> socket.socket:
    """Return a non-blocking socket for a probe of ``address``. Raises OSError."""
    family = socket.AF_INET6 if address.version == IPV6 else socket.AF_INET
    return _dial.get().open(family, kind, protocol)


def explain(port: int, detail: str) -> str:
    """Return the detail of a failed probe, with what the present task's way adds to it."""
    return _dial.get().explain(port, detail)
