"""Which addresses can be what they are given for, and why the others cannot.

Owns the one rule for whoever gives an address: the file (``config.addresses``) and DNS
(``address_book``). It says no to an address that can never work, such as a multicast one; what an
address means beside others (a VIP, a source of fullnat) is not asked here.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network
from typing import Final, TypeAlias

from lb_xdp.core.model import Address

Network: TypeAlias = IPv4Network | IPv6Network
Unfit: TypeAlias = Sequence[tuple[Network, str]]
"""Networks whose addresses do not fit, and the end of a sentence that says why."""

NO_HOST: Final[Unfit] = (
    (IPv4Network("0.0.0.0/8"), "is no host's address (0.0.0.0/8)"),
    (IPv4Network("127.0.0.0/8"), "is a loopback address, which never leaves its host"),
    (IPv4Network("224.0.0.0/4"), "is a multicast address"),
    (IPv4Network("255.255.255.255/32"), "is the broadcast address"),
    (IPv6Network("::1/128"), "is a loopback address, which never leaves its host"),
    (IPv6Network("::/32"), "is no host's address (::/32)"),
    (IPv6Network("ff00::/8"), "is a multicast address"),
)
_LINK_LOCAL: Final[Unfit] = (
    (IPv4Network("169.254.0.0/16"), "is a link-local address, which no router forwards"),
    (IPv6Network("fe80::/10"), "is a link-local address, which no router forwards"),
)

ANYWHERE: Final[Unfit] = (
    (IPv6Network("fe80::/10"), "is a link-local address: it could be on any interface"),
)
"""What an address cannot be that may be one of this host, too."""

ROUTED: Final[Unfit] = (*NO_HOST, *_LINK_LOCAL)
"""What an address that routers forward to cannot be."""

HOSTS: Final[Unfit] = (*NO_HOST, *ANYWHERE)
"""What the address of another host cannot be: of a backend, say."""


def why_unfit(address: Address, unfit: Unfit) -> str:
    """Return why an address does not fit, nothing where it does."""
    return next((reason for network, reason in unfit if address in network), "")
