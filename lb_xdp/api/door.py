"""The API's door to the network: so many connections at once, and no more.

Each is a descriptor of the process that probes the backends with its own, and strangers can hold
one without a token. Beyond the limit they are closed at once, so they shut out each other and
nothing else. It refuses to know HTTP: what is let in goes to ``serve``.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager, suppress
from ipaddress import ip_address
from typing import Protocol

from lb_xdp.api.listener import BACKLOG, not_listening
from lb_xdp.core.model import IPV6, ApiListener

CONNECTIONS_MAX = 64
HANDSHAKE_S = 5.0
_BREATH_S = 1.0  # until another try when the host has no descriptor left


class Servant(Protocol):
    """Who talks to those that are let in; aiohttp's Server is one."""

    @property
    def connections(self) -> Collection[object]:
        """Return what there is of connections now."""
        ...

    def __call__(self) -> asyncio.BaseProtocol:
        """Return who talks on one more connection."""
        ...


@asynccontextmanager
async def open_door(
    remote: ApiListener, context: ssl.SSLContext | None, servant: Servant
) -> AsyncIterator[None]:
    """Let connections in while the context is open. Raises HostError, AddressInUseError."""
    with _listening(remote) as listener:
        work = asyncio.create_task(_Door(context, servant).work(listener))
        try:
            yield
        finally:
            work.cancel()
            with suppress(asyncio.CancelledError):
                await work


def _listening(remote: ApiListener) -> socket.socket:
    host, port = remote.listen
    is_ipv6 = ip_address(host).version == IPV6
    family = socket.AF_INET6 if is_ipv6 else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise not_listening(remote, error) from error
    listener.setblocking(False)  # noqa: FBT003 - the socket module takes no keyword here
    return listener


class _Door:
    def __init__(self, context: ssl.SSLContext | None, servant: Servant) -> None:
        self._context = context
        self._servant = servant
        self._entering: set[asyncio.Task[None]] = set()

    async def work(self, listener: socket.socket) -> None:
        """Let in who comes, until cancelled."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                try:
                    channel, _ = await loop.sock_accept(listener)
                except OSError:
                    await asyncio.sleep(_BREATH_S)
                    continue
                self._meet(channel)
        finally:
            for task in self._entering:
                task.cancel()

    def _meet(self, channel: socket.socket) -> None:
        if len(self._entering) + len(self._servant.connections) >= CONNECTIONS_MAX:
            channel.close()
            return
        task = asyncio.create_task(self._let_in(channel))
        self._entering.add(task)
        task.add_done_callback(self._entering.discard)

    async def _let_in(self, channel: socket.socket) -> None:
        """Shake hands; who cannot, or takes too long, stays outside."""
        handshake_s = HANDSHAKE_S if self._context else None
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                self._servant, channel, ssl=self._context, ssl_handshake_timeout=handshake_s
            )
        except OSError:  # SSLError and TimeoutError are
            channel.close()
