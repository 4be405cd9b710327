"""What the kernel reports, as small values instead of nested attribute lists.

Owns the meaning of rtnetlink messages (rtnetlink(7)). Refuses to own sockets and what follows from
a message: that is ``rtnetlink.py`` and ``view.py``.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any, Final

from lb_xdp.core.model import Address

IFF_UP: Final = 0x1
IFF_RUNNING: Final = 0x40

NUD_NONE: Final = 0x00
NUD_INCOMPLETE: Final = 0x01
NUD_STALE: Final = 0x04
NUD_FAILED: Final = 0x20

RTN_UNICAST: Final = 1

NO_MAC: Final = bytes(6)

HopKey = tuple[int, Address]
"""What makes a neighbour unique: interface index and address.

A link-local address is unique together with the index only. No address here has a zone.
"""


@dataclass(frozen=True, slots=True)
class Link:
    """An interface as it is now."""

    index: int
    name: str
    mac: bytes
    mtu: int
    up: bool


@dataclass(frozen=True, slots=True)
class LinkGone:
    """An interface was removed, or moved to another network namespace."""

    index: int


@dataclass(frozen=True, slots=True)
class LocalAddress:
    """An address of this host was added (``present``) or removed."""

    ifindex: int
    address: Address
    present: bool


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A neighbour entry. ``state`` is one NUD_ value; ``mac`` is None where the kernel has none."""

    ifindex: int
    address: Address
    state: int
    mac: bytes | None

    @property
    def key(self) -> HopKey:
        """Return what makes the entry unique."""
        return self.ifindex, self.address


@dataclass(frozen=True, slots=True)
class RoutesChanged:
    """Lookups within ``prefix`` may answer differently now; rules change all of a family."""

    prefix: IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class Route:
    """The answer to a route lookup for one address: the way out, and the gateway if any.

    The gateway of an IPv4 route may be an IPv6 one (RFC 5549): neighbour discovery finds its MAC.
    """

    ifindex: int
    gateway: Address | None


Event = Link | LinkGone | LocalAddress | Neighbour | RoutesChanged

EVERYWHERE: Final[dict[int, IPv4Network | IPv6Network]] = {
    socket.AF_INET: IPv4Network("0.0.0.0/0"),
    socket.AF_INET6: IPv6Network("::/0"),
}
"""All addresses of each family that is followed."""


def parse_event(message: Any) -> Event | None:
    """Translate one pyroute2 message; None for those that say nothing about IP forwarding."""
    parser = _PARSERS.get(message.get("event"))
    return parser(message) if parser else None


def parse_route(message: Any) -> Route | None:
    """Translate the answer to a lookup; None where no packet would leave the host by Ethernet.

    That is: addresses of this host, broadcast, multicast and anycast.
    """
    if message["type"] != RTN_UNICAST:
        return None
    via = message.get("via")  # RTA_VIA: a gateway of another family than the route's
    gateway = via["addr"] if via is not None else message.get("gateway")
    return Route(message.get("oif"), ip_address(gateway) if gateway else None)


def _parse_link(message: Any) -> Link | LinkGone | None:
    # A bridge reports its ports as links of its own family; DELLINK then means "left the bridge".
    if message["family"] == socket.AF_BRIDGE:
        return None
    if message["event"] == "RTM_DELLINK":
        return LinkGone(message["index"])
    up = message["flags"] & (IFF_UP | IFF_RUNNING) == IFF_UP | IFF_RUNNING
    mac = _parse_mac(message.get("address")) or NO_MAC
    return Link(message["index"], message.get("ifname"), mac, message.get("mtu") or 0, up)


def _parse_address(message: Any) -> LocalAddress | None:
    # On a point-to-point interface "address" is the peer's and "local" ours. IPv6 gives "local"
    # only there, IPv4 always.
    if message["family"] not in EVERYWHERE:
        return None
    present = message["event"] == "RTM_NEWADDR"
    ours = message.get("local") or message.get("address")
    return LocalAddress(message["index"], ip_address(ours), present)


def _parse_neighbour(message: Any) -> Neighbour | None:
    if message["family"] not in EVERYWHERE:  # a bridge tells of its forwarding table, too
        return None
    gone = message["event"] == "RTM_DELNEIGH"
    state = NUD_NONE if gone else message["state"]
    mac = None if gone else _parse_mac(message.get("lladdr"))
    return Neighbour(message["ifindex"], ip_address(message.get("dst")), state, mac)


def _parse_route_change(message: Any) -> RoutesChanged | None:
    everywhere = EVERYWHERE.get(message["family"])
    destination = message.get("dst")
    if everywhere is None or destination is None:
        return RoutesChanged(everywhere) if everywhere else None
    return RoutesChanged(ip_network(f"{destination}/{message['dst_len']}"))


def _parse_rule(message: Any) -> RoutesChanged | None:
    everywhere = EVERYWHERE.get(message["family"])
    return RoutesChanged(everywhere) if everywhere else None


def _parse_mac(text: str | None) -> bytes | None:
    """Turn ``02:00:00:00:00:01`` into bytes; None for what is no Ethernet address."""
    if text is None:
        return None
    try:
        mac = bytes.fromhex(text.replace(":", ""))
    except ValueError:
        return None
    return mac if len(mac) == len(NO_MAC) else None


_PARSERS: dict[str, Callable[[Any], Event | None]] = {
    "RTM_NEWLINK": _parse_link,
    "RTM_DELLINK": _parse_link,
    "RTM_NEWADDR": _parse_address,
    "RTM_DELADDR": _parse_address,
    "RTM_NEWNEIGH": _parse_neighbour,
    "RTM_DELNEIGH": _parse_neighbour,
    "RTM_NEWROUTE": _parse_route_change,
    "RTM_DELROUTE": _parse_route_change,
    "RTM_NEWRULE": _parse_rule,
    "RTM_DELRULE": _parse_rule,
}
