"""The only place that talks to pyroute2: questions to the kernel, and its stream of events.

Every foreign error becomes ``NetlinkError`` here. Refuses to know what the answers are for.
Both classes work in the network namespace that the process is in when they are opened.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Final

from pyroute2 import AsyncIPRoute
from pyroute2.netlink import rtnl
from pyroute2.netlink.exceptions import NetlinkDumpInterrupted
from pyroute2.netlink.exceptions import NetlinkError as KernelError

from lb_xdp.core.model import IPV6, Address
from lb_xdp.errors import NetlinkError
from lb_xdp.netlink.messages import NUD_NONE, Event, HopKey, Route, parse_event, parse_route

NTF_USE: Final = 0x01

_GROUPS: Final = (
    rtnl.RTMGRP_LINK
    | rtnl.RTMGRP_NEIGH
    | rtnl.RTMGRP_IPV4_IFADDR
    | rtnl.RTMGRP_IPV4_ROUTE
    | rtnl.RTMGRP_IPV4_RULE
    | rtnl.RTMGRP_IPV6_IFADDR
    | rtnl.RTMGRP_IPV6_ROUTE
    | rtnl.RTMGRP_IPV6_RULE
)

# A dump that changes underneath is void (NLM_F_DUMP_INTR) and read again. Under a storm of changes
# that can happen several times in a row; two seconds of it means that something else is wrong.
_DUMP_ATTEMPTS: Final = 40
_DUMP_PAUSE_S: Final = 0.05

EVENT_BUFFER_BYTES: Final = 4 << 20


class OverrunError(NetlinkError):
    """The kernel had more events than the socket held; what was lost must be read anew."""


class Questions:
    """Requests with an answer; safe for concurrent tasks. ``close`` it."""

    def __init__(self) -> None:
        self._route = AsyncIPRoute()

    def close(self) -> None:
        """Close the socket."""
        self._route.close()

    async def read_all(self) -> list[Event]:
        """Return every link, address and neighbour, of both families. Raises ``NetlinkError``."""
        for _ in range(_DUMP_ATTEMPTS):
            try:
                with _translated("reading interfaces, addresses and neighbours"):
                    return await self._dump()
            except _InterruptedError:
                await asyncio.sleep(_DUMP_PAUSE_S)
        raise NetlinkError("the kernel's interface tables change too fast to be read")

    async def _dump(self) -> list[Event]:
        # One after the other: the kernel refuses a second dump on a socket while one is under way.
        links = [message async for message in await self._route.link("dump")]
        addresses = [m async for m in await self._route.addr("dump", family=socket.AF_UNSPEC)]
        neighbours = [m async for m in await self._route.neigh("dump", family=socket.AF_UNSPEC)]
        events = map(parse_event, [*links, *addresses, *neighbours])
        return [event for event in events if event is not None]

    async def find_route(self, target: Address) -> Route | None:
        """Look up the way to ``target`` as ``ip route get`` does; None where there is none."""
        with _translated(f"looking up the route to {target}"):
            try:
                answers = await self._route.route("get", family=_family(target), dst=str(target))
            except KernelError:
                # unreachable, prohibit, blackhole, no route: each has its errno, all mean the same.
                return None
        return parse_route(answers[0]) if answers else None

    async def use_neighbour(self, hop: HopKey) -> None:
        """Make the kernel resolve or confirm a neighbour, as a packet to it would.

        NTF_USE is neigh_event_send() in net/core/neighbour.c: an unknown or failed entry sends ARP,
        or a neighbour solicitation (IPv6), at once, a stale one after delay_first_probe_time (5 s),
        a good one nothing.
        """
        ifindex, address = hop
        with _translated(f"asking for the MAC of {address}"):
            await self._route.neigh(
                "replace",
                family=_family(address),
                ifindex=ifindex,
                dst=str(address),
                state=NUD_NONE,
                flags=NTF_USE,
            )


class Events:
    """The kernel's notices about links, addresses, neighbours, routes and rules, from now on.

    After ``OverrunError`` an instance is of no use any more: open another, then read everything.
    """

    def __init__(self, buffer_bytes: int = EVENT_BUFFER_BYTES) -> None:
        self._route = AsyncIPRoute(rcvbuf=buffer_bytes)

    def close(self) -> None:
        """Close the socket."""
        self._route.close()

    async def subscribe(self) -> None:
        """Start to collect events; call it once. Raises ``NetlinkError``."""
        with _translated("subscribing to network changes"):
            await self._route.bind(groups=_GROUPS)

    async def __aiter__(self) -> AsyncIterator[Event]:
        """Yield events without end. Raises ``OverrunError`` and ``NetlinkError``."""
        while True:
            with _translated("following network changes"):
                # One turn is one datagram's messages.
                async for message in self._route.get():
                    event = parse_event(message)
                    if event is not None:
                        yield event


def _family(address: Address) -> int:
    return socket.AF_INET6 if address.version == IPV6 else socket.AF_INET


class _InterruptedError(NetlinkError):
    """A dump changed while it was read."""


@contextmanager
def _translated(what: str) -> Iterator[None]:
    try:
        yield
    except NetlinkDumpInterrupted as error:
        raise _InterruptedError(f"{what}: the tables changed meanwhile") from error
    except KernelError as error:
        raise _named(what, abs(error.code)) from error
    except OSError as error:
        raise _named(what, error.errno or errno.EIO) from error


def _named(what: str, code: int) -> NetlinkError:
    kind = OverrunError if code == errno.ENOBUFS else NetlinkError
    return kind(f"{what}: {os.strerror(code)}")
