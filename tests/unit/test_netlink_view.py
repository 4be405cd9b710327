"""What the mirror of the kernel's neighbours keeps while a link is down, whatever comes first."""

from __future__ import annotations

from ipaddress import IPv4Address
from itertools import permutations

import pytest

from lb_xdp.core.model import Address
from lb_xdp.netlink.messages import NUD_NONE, NUD_STALE, Event, Link, Neighbour, Route
from lb_xdp.netlink.view import View

BACKEND, GATEWAY = IPv4Address("10.1.0.11"), IPv4Address("10.1.0.254")
DISTANT = IPv4Address("192.0.2.9")
MAC = bytes(range(6))
DOWN = Link(7, "eth1", bytes(6), 1500, up=False)
UP = Link(7, "eth1", bytes(6), 1500, up=True)
ROUTES: dict[Address, Route | None] = {BACKEND: Route(7, None), DISTANT: Route(7, GATEWAY)}
NO_WAY: dict[Address, Route | None] = dict.fromkeys(ROUTES)


def view() -> View:
    """Return a mirror that knows the ways and the MACs of both targets."""
    seen = View()
    seen.apply(UP)
    seen.set_routes({**ROUTES})
    for address in (BACKEND, GATEWAY):
        seen.apply(Neighbour(7, address, NUD_STALE, MAC))
    return seen


def macs(seen: View) -> set[bytes | None]:
    """Return the MACs that packets to the targets get."""
    return {hop.mac for hop in seen.topology({"eth1"}).next_hops.values()}


@pytest.mark.parametrize("order", [*permutations(range(4))])
def test_a_link_that_was_down_has_its_neighbours_back_at_once(order: tuple[int, ...]) -> None:
    """Whether the routes or the neighbours go first: together they are back, none later."""
    seen = view()
    flushed = [Neighbour(7, address, NUD_NONE, None) for address in (BACKEND, GATEWAY)]
    steps: list[Event | None] = [DOWN, *flushed, None]
    for number in order:
        step = steps[number]
        if step is None:
            seen.set_routes({**NO_WAY})
        else:
            seen.apply(step)
    seen.apply(UP)
    seen.set_routes({**ROUTES})
    assert macs(seen) == {MAC}


def test_neighbours_of_targets_that_are_gone_are_forgotten() -> None:
    """What is no longer followed is not kept: the mirror does not grow."""
    seen = view()
    seen.set_routes({DISTANT: Route(7, GATEWAY)})
    seen.apply(Neighbour(7, BACKEND, NUD_NONE, None))
    assert {key[1] for key in seen.neighbours} == {GATEWAY}
    assert not seen.latest.keys() - {DISTANT}
