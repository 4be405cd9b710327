"""The part of the host's network that matters for forwarding, as plain values.

The netlink adapter makes a ``Topology``; the reconciler compares two of them and plans. This module
owns the vocabulary only: it resolves nothing and knows no netlink.

MACs are 6 bytes in wire order, ``index`` and ``ifindex`` are the kernel's interface numbers in the
current network namespace, ``mtu`` is in bytes of IP packet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lb_xdp.core.model import Address


@dataclass(frozen=True, slots=True)
class Interface:
    """One network interface. ``up`` means switched on and with carrier."""

    name: str
    index: int
    mac: bytes
    mtu: int
    up: bool


@dataclass(frozen=True, slots=True)
class NextHop:
    """Where a packet for one address leaves the host, and the MACs that it carries then.

    ``mac`` is the destination's, or its gateway's where ``gateway`` is set; None as long as nobody
    answered. ``source_mac`` is the outgoing interface's, zeros where that has none (a tunnel).
    ``on_link`` says that the address is reached without a gateway.
    """

    ifindex: int
    source_mac: bytes
    mac: bytes | None
    gateway: Address | None
    on_link: bool


@dataclass(frozen=True, slots=True)
class Topology:
    """The followed interfaces that exist, by name, and the next hop of every reachable target.

    A target that is missing in ``next_hops`` has no route, or is an address of this host. An
    IPv6 gateway is often a link-local address (RFC 4861); ``local_addresses`` holds none of those,
    since each is meant on one interface only.
    """

    interfaces: Mapping[str, Interface] = field(default_factory=dict)
    next_hops: Mapping[Address, NextHop] = field(default_factory=dict)
    local_addresses: frozenset[Address] = frozenset()

    def severed(self, address: Address) -> bool:
        """Say whether nothing can get from this host to an address: no route, or the link is down.

        Of an interface that is not followed nothing is known, so it is not called down.
        """
        hop = self.next_hops.get(address)
        if hop is None:
            return True
        return any(one.index == hop.ifindex and not one.up for one in self.interfaces.values())

    def unresolved(self, targets: frozenset[Address]) -> frozenset[Address]:
        """Return those of ``targets`` that no packet can be sent to: no route or no MAC."""
        hops = self.next_hops
        return frozenset(a for a in targets if a not in hops or hops[a].mac is None)
