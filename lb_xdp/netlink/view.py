"""A mirror of the kernel's links, addresses and neighbours, and what follows from it for targets.

Pure: events go in, a ``Topology`` and the lists of what to ask next come out. Refuses to own
sockets, time and tasks; ``follow.py`` has them.

Invariant: a MAC that was once seen for the next hop of a target is never forgotten while that is
the target's latest one, only replaced. A neighbour that fails or is deleted keeps it, also while
the link is down and there is no route: whether the backend is alive is for health checks to say,
and a wrong guess here would cut it off.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from ipaddress import IPv6Network

from lb_xdp.core.model import Address
from lb_xdp.core.topology import Interface, NextHop, Topology
from lb_xdp.netlink.messages import (
    NO_MAC,
    NUD_FAILED,
    NUD_INCOMPLETE,
    NUD_NONE,
    NUD_STALE,
    Event,
    HopKey,
    Link,
    LinkGone,
    LocalAddress,
    Neighbour,
    Route,
    RoutesChanged,
)

_LINK_LOCAL = IPv6Network("fe80::/10")
_UNANSWERED = (NUD_NONE, NUD_INCOMPLETE, NUD_FAILED)


@dataclass(slots=True)
class View:
    """The mirror.

    ``routes`` holds one lookup per target, None where there is no way out; ``hops`` are the
    neighbours that these lead to. ``latest`` is where each target's latest route led, and
    ``held`` those hops: of these no MAC is forgotten.
    """

    links: dict[int, Link] = field(default_factory=dict)
    addresses: set[HopKey] = field(default_factory=set)
    neighbours: dict[HopKey, Neighbour] = field(default_factory=dict)
    routes: dict[Address, Route | None] = field(default_factory=dict)
    hops: frozenset[HopKey] = frozenset()
    latest: dict[Address, HopKey] = field(default_factory=dict)
    held: frozenset[HopKey] = frozenset()

    def apply(self, event: Event) -> Iterable[Address]:
        """Take one event in; return the targets whose route must be looked up again."""
        match event:
            case RoutesChanged(prefix):
                return [target for target in self.routes if target in prefix]
            case Link():
                return self._apply_link(event)
            case LinkGone(index):
                return self._forget_link(index)
            case LocalAddress(ifindex, address, present):
                change = self.addresses.add if present else self.addresses.discard
                change((ifindex, address))
                return self.routes
            case Neighbour():
                self._apply_neighbour(event)
        return ()

    def concerns(self, event: Event) -> bool:
        """Say whether the event can change the topology: most neighbours are strangers."""
        return not isinstance(event, Neighbour) or event.key in self.hops

    def reload(self, events: Iterable[Event]) -> None:
        """Replace the mirror by a full reading; last known MACs of next hops stay."""
        former = self.neighbours
        self.links, self.addresses, self.neighbours = {}, set(), {}
        for event in events:
            self.apply(event)
        for key in self.held - self.neighbours.keys():
            if key in former and key[0] in self.links:
                self.neighbours[key] = replace(former[key], state=NUD_NONE)

    def set_routes(self, routes: dict[Address, Route | None]) -> None:
        """Take over lookups; targets that are not in ``routes`` are no longer followed."""
        self.routes = routes
        present = {
            target: (route.ifindex, route.gateway or target)
            for target, route in routes.items()
            if route is not None
        }
        self.hops = frozenset(present.values())
        kept = {target: hop for target, hop in self.latest.items() if target in routes}
        self.latest = kept | present
        self.held = frozenset(self.latest.values())

    def topology(self, names: Collection[str]) -> Topology:
        """Return what the mirror says about the interfaces ``names`` and all targets."""
        return Topology(
            interfaces={
                link.name: Interface(link.name, link.index, link.mac, link.mtu, link.up)
                for link in self.links.values()
                if link.name in names
            },
            next_hops=dict(self._next_hops()),
            local_addresses=frozenset(a for _, a in self.addresses if a not in _LINK_LOCAL),
        )

    def unanswered(self) -> list[HopKey]:
        """Return the next hops in use that the kernel has no valid entry for at this moment."""
        return [key for key in self.hops if self._state(key) in _UNANSWERED]

    def stale(self) -> list[HopKey]:
        """Return the next hops in use whose entry the kernel has not confirmed for a while."""
        return [key for key in self.hops if self._state(key) == NUD_STALE]

    def _state(self, key: HopKey) -> int:
        known = self.neighbours.get(key)
        return known.state if known else NUD_NONE

    def _next_hops(self) -> Iterator[tuple[Address, NextHop]]:
        for target, route in self.routes.items():
            if route is None or route.ifindex not in self.links:
                continue
            known = self.neighbours.get((route.ifindex, route.gateway or target))
            yield (
                target,
                NextHop(
                    ifindex=route.ifindex,
                    source_mac=self.links[route.ifindex].mac,
                    mac=known.mac if known else None,
                    gateway=route.gateway,
                    on_link=route.gateway is None,
                ),
            )

    def _apply_link(self, link: Link) -> Iterable[Address]:
        # Routes of an interface that goes down vanish without a message of their own: those of IPv4
        # always, those of IPv6 where net.ipv6.route.skip_notify_on_dev_down is set.
        former = self.links.get(link.index)
        self.links[link.index] = link
        return self.routes if former is None or former.up != link.up else ()

    def _forget_link(self, index: int) -> Iterable[Address]:
        self.links.pop(index, None)
        self.addresses = {key for key in self.addresses if key[0] != index}
        self.neighbours = {k: v for k, v in self.neighbours.items() if k[0] != index}
        return self.routes

    def _apply_neighbour(self, entry: Neighbour) -> None:
        former = self.neighbours.get(entry.key)
        if entry.state == NUD_NONE and entry.key not in self.held:
            self.neighbours.pop(entry.key, None)
        elif entry.mac in (None, NO_MAC):
            self.neighbours[entry.key] = replace(entry, mac=former.mac if former else None)
        else:
            self.neighbours[entry.key] = entry
