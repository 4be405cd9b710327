"""The follower on a real gateway: what changes on the network is what its topology says."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from ipaddress import IPv4Address, IPv6Address

import pytest

from lb_xdp.core.model import Address
from lb_xdp.core.topology import Topology
from lb_xdp.errors import InterfaceError
from lb_xdp.netlink import Follower
from lb_xdp.netlink.follow import Pace
from tests.support.lab import Lab

PEER = IPv4Address("10.0.0.2")
OTHER = IPv4Address("10.0.1.2")
FAR = IPv4Address("10.9.0.1")
PEER6 = IPv6Address("2001:db8::2")
OTHER6 = IPv6Address("2001:db8:1::2")
FAR6 = IPv6Address("2001:db8:9::1")
NEW_MAC = "02:00:00:00:00:99"
QUICK = Pace(ask_again_s=0.2, confirm_again_s=0.5)


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


class Wire:
    """A gateway with two neighbours, one on each interface; tests run on the gateway."""

    def __init__(self, lab: Lab) -> None:
        self.gateway = lab.host("gateway")
        self.peer = lab.host("peer")
        self.other = lab.host("other")
        self._lab = lab
        for host in (self.gateway, self.peer, self.other):
            # Link-local addresses are of use at once: a solicitation needs one to come from.
            confs = (f"net.ipv6.conf.{name}.accept_dad=0" for name in ("all", "default"))
            host.run("sysctl", "-q", "-w", *confs)
        self.cable("eth0")
        lab.cable(self.gateway, "eth1", self.other, "eth0")
        self.gateway.address("eth1", "10.0.1.1/24")
        self.other.address("eth0", "10.0.1.2/24")
        self.gateway.address("eth1", "2001:db8:1::1/64 nodad")
        self.other.address("eth0", "2001:db8:1::2/64 nodad")

    def cable(self, interface: str) -> None:
        """Lay the cable to the peer, anew if need be."""
        self._lab.cable(self.gateway, interface, self.peer, "eth0")
        self.gateway.address(interface, "10.0.0.1/24")
        self.peer.address("eth0", "10.0.0.2/24")
        self.gateway.address(interface, "2001:db8::1/64 nodad")
        self.peer.address("eth0", "2001:db8::2/64 nodad")


@pytest.fixture
def wire() -> Iterator[Wire]:
    with Lab() as lab:
        wire = Wire(lab)
        with wire.gateway.inside():
            yield wire


class Watch:
    """Counts changes, and waits for a topology that fits."""

    def __init__(self) -> None:
        self.follower: Follower
        self.changes = 0
        self._news = asyncio.Event()

    def __call__(self) -> None:
        self.changes += 1
        self._news.set()

    @property
    def topology(self) -> Topology:
        return self.follower.topology

    def mac(self, target: Address) -> bytes | None:
        hop = self.topology.next_hops.get(target)
        return hop.mac if hop else None

    async def until(self, fits: Callable[[], bool], timeout_s: float = 5.0) -> float:
        """Wait for a change after which ``fits`` says so; return how long that took."""
        began_s = time.monotonic()
        async with asyncio.timeout(timeout_s):
            while not fits():
                self._news.clear()
                await self._news.wait()
        return time.monotonic() - began_s


@asynccontextmanager
async def following(
    *targets: Address, pace: Pace = QUICK, event_buffer_bytes: int = 1 << 20
) -> AsyncIterator[Watch]:
    """Follow both interfaces and ``targets``; start when all of these have a MAC."""
    watch = Watch()
    follower = Follower(("eth0", "eth1"), watch, pace=pace, event_buffer_bytes=event_buffer_bytes)
    async with follower:
        watch.follower = follower
        await follower.set_targets(targets)
        assert await follower.settle(3.0) == frozenset()
        yield watch


async def test_reads_interfaces_addresses_and_next_hops(wire: Wire) -> None:
    """A target on the wire and one behind it have the MACs and ways that the hosts say."""
    wire.gateway.route("10.9.0.0/16", "10.0.1.2")
    async with following(PEER, FAR) as watch:
        topology = watch.topology
    eth0, eth1 = topology.interfaces["eth0"], topology.interfaces["eth1"]
    assert (eth0.mac, eth0.mtu, eth0.up) == (mac(wire.gateway.mac("eth0")), 1500, True)
    near, far = topology.next_hops[PEER], topology.next_hops[FAR]
    assert (near.ifindex, near.mac, near.gateway, near.on_link) == (
        eth0.index,
        mac(wire.peer.mac("eth0")),
        None,
        True,
    )
    assert (far.ifindex, far.mac, far.gateway, far.on_link) == (
        eth1.index,
        mac(wire.other.mac("eth0")),
        OTHER,
        False,
    )
    assert (near.source_mac, far.source_mac) == (eth0.mac, eth1.mac)
    assert {IPv4Address("10.0.0.1"), IPv4Address("10.0.1.1")} <= topology.local_addresses


async def test_reads_ipv6_next_hops(wire: Wire) -> None:
    """An IPv6 target on the wire and one behind it are found like IPv4 ones."""
    wire.gateway.route("2001:db8:9::/48", str(OTHER6))
    async with following(PEER6, FAR6, PEER) as watch:
        topology = watch.topology
    near, far = topology.next_hops[PEER6], topology.next_hops[FAR6]
    assert near == topology.next_hops[PEER]
    assert (near.mac, near.gateway, near.on_link) == (mac(wire.peer.mac("eth0")), None, True)
    assert far.ifindex == topology.interfaces["eth1"].index
    assert (far.mac, far.gateway, far.on_link) == (mac(wire.other.mac("eth0")), OTHER6, False)
    ours = {IPv6Address("2001:db8::1"), IPv6Address("2001:db8:1::1"), IPv6Address("::1")}
    assert ours <= topology.local_addresses
    assert not any(a.is_link_local for a in topology.local_addresses)


async def test_finds_the_way_over_a_link_local_gateway(wire: Wire) -> None:
    """A router known by its link-local address, which it has on each wire, is told by the wire."""
    wire.peer.ip("addr add fe80::1/64 dev eth0 nodad")
    wire.other.ip("addr add fe80::1/64 dev eth0 nodad")
    wire.gateway.ip("route add 2001:db8:9::/48 via fe80::1 dev eth1")
    async with following(FAR6) as watch:
        hop = watch.topology.next_hops[FAR6]
        assert (hop.gateway, hop.on_link) == (IPv6Address("fe80::1"), False)
        assert hop.mac == mac(wire.other.mac("eth0"))
        wire.gateway.ip("route add 2001:db8:9::/64 via fe80::1 dev eth0")
        await watch.until(lambda: watch.mac(FAR6) == mac(wire.peer.mac("eth0")))


async def test_finds_an_ipv4_target_behind_an_ipv6_gateway(wire: Wire) -> None:
    """RFC 5549: the MAC of an IPv4 route's IPv6 gateway comes from neighbour discovery."""
    wire.gateway.ip(f"route add 10.9.0.0/16 via inet6 {OTHER6}")
    async with following(FAR) as watch:
        hop = watch.topology.next_hops[FAR]
    assert (hop.gateway, hop.on_link, hop.mac) == (OTHER6, False, mac(wire.other.mac("eth0")))


async def test_follows_ipv6_routes_and_addresses(wire: Wire) -> None:
    """IPv6 routes that move, vanish and change by rule, and addresses that come, are seen."""
    wire.gateway.route("2001:db8:9::/48", str(OTHER6))
    async with following(FAR6, PEER6) as watch:
        wire.gateway.route("2001:db8:9::/64", str(PEER6))
        await watch.until(lambda: watch.mac(FAR6) == mac(wire.peer.mac("eth0")))
        rule = ("to", "2001:db8:9::/64", "unreachable")
        wire.gateway.run("ip", "-6", "rule", "add", *rule)
        await watch.until(lambda: FAR6 not in watch.topology.next_hops)
        wire.gateway.run("ip", "-6", "rule", "del", *rule)
        await watch.until(lambda: FAR6 in watch.topology.next_hops)
        wire.gateway.ip(f"addr add {PEER6}/128 dev lo")
        await watch.until(lambda: PEER6 in watch.topology.local_addresses)
        await watch.until(lambda: PEER6 not in watch.topology.next_hops)


async def test_asks_until_an_ipv6_neighbour_answers(wire: Wire) -> None:
    """An IPv6 target that is not there yet is asked for until it is, and keeps its MAC after."""
    wire.peer.ip(f"addr del {PEER6}/64 dev eth0")
    watch = Watch()
    async with Follower(("eth0",), watch, pace=QUICK) as watch.follower:
        await watch.follower.set_targets({PEER6, OTHER6})
        assert await watch.follower.settle(0.3) == {PEER6}
        wire.peer.ip(f"addr add {PEER6}/64 dev eth0 nodad")
        assert await watch.follower.settle(5.0) == frozenset()
        known = watch.mac(PEER6)
        assert known == mac(wire.peer.mac("eth0"))
        wire.peer.ip(f"addr del {PEER6}/64 dev eth0")
        wire.gateway.ip(f"neigh del {PEER6} dev eth0")
        wire.gateway.ip("addr add 2001:db8:5::1/64 dev eth1 nodad")
        await watch.until(lambda: IPv6Address("2001:db8:5::1") in watch.topology.local_addresses)
        assert watch.mac(PEER6) == known


async def test_follows_an_interface_of_ipv6_down_and_up(wire: Wire) -> None:
    """IPv6 next hops vanish with their interface; its addresses must be given again."""
    async with following(PEER6, OTHER6) as watch:
        wire.gateway.ip("link set eth0 down")
        await watch.until(lambda: PEER6 not in watch.topology.next_hops)
        assert watch.mac(OTHER6) is not None
        wire.gateway.ip("link set eth0 up", "addr replace 2001:db8::1/64 dev eth0 nodad")
        await watch.until(lambda: watch.mac(PEER6) == mac(wire.peer.mac("eth0")))


async def test_says_which_interface_is_missing_and_which_exist(wire: Wire) -> None:
    """A wrong interface name is an error that names it and offers the right ones."""
    assert wire
    with pytest.raises(InterfaceError, match=r"no interface eth7 .* eth0, eth1, lo"):
        await Follower(("eth0", "eth7"), lambda: None).__aenter__()


async def test_follows_a_neighbour_that_gets_another_mac(wire: Wire) -> None:
    """A new MAC counts as soon as ARP tells of it, with one change for the caller."""
    # Else the kernel takes no second MAC within a second of the first.
    wire.gateway.sysctl(neigh__eth0__locktime=0)
    wire.peer.sysctl(conf__eth0__arp_notify=1)
    async with following(PEER) as watch:
        before = watch.changes
        wire.peer.ip(f"link set eth0 address {NEW_MAC}")
        took_s = await watch.until(lambda: watch.mac(PEER) == mac(NEW_MAC))
        assert took_s < 1.0
        assert watch.changes == before + 1


async def test_finds_a_silent_change_of_a_mac_by_asking(wire: Wire) -> None:
    """A stale entry is confirmed from time to time, so that a change without ARP is seen too."""
    wire.gateway.sysctl(
        neigh__eth0__delay_first_probe_time=1,
        neigh__eth0__base_reachable_time_ms=100,
        neigh__eth0__retrans_time_ms=100,
    )
    async with following(PEER) as watch:
        wire.peer.ip(f"link set eth0 address {NEW_MAC}")
        await watch.until(lambda: watch.mac(PEER) == mac(NEW_MAC), timeout_s=15)


async def test_keeps_a_mac_while_the_neighbour_is_silent(wire: Wire) -> None:
    """An entry that fails or is deleted keeps its last MAC, until ARP brings another."""
    async with following(PEER) as watch:
        known = watch.mac(PEER)
        wire.peer.ip("link set eth0 arp off")
        wire.gateway.ip(f"neigh del {PEER} dev eth0")
        await asyncio.sleep(0.5)  # nothing must happen: there is no event for that
        assert watch.mac(PEER) == known
        wire.peer.ip(f"link set eth0 address {NEW_MAC}", "link set eth0 arp on")
        await watch.until(lambda: watch.mac(PEER) == mac(NEW_MAC))


async def test_follows_a_route_that_moves(wire: Wire) -> None:
    """A route to another interface and gateway moves its targets, with the new gateway's MAC."""
    wire.gateway.route("10.9.0.0/16", "10.0.1.2")
    async with following(PEER, FAR) as watch:
        wire.gateway.route("10.9.0.0/24", "10.0.0.2")
        expected = mac(wire.peer.mac("eth0"))
        await watch.until(lambda: watch.mac(FAR) == expected)
        assert watch.topology.next_hops[FAR].gateway == PEER
        wire.gateway.ip("route del 10.9.0.0/24", "route replace unreachable 10.9.0.0/16")
        await watch.until(lambda: FAR not in watch.topology.next_hops)


async def test_follows_an_interface_down_and_up(wire: Wire) -> None:
    """A switched-off interface is down and its targets have no way; switched on, all is back."""
    async with following(PEER, OTHER) as watch:
        index = watch.topology.interfaces["eth0"].index
        wire.gateway.ip("link set eth0 down")
        await watch.until(lambda: not watch.topology.interfaces["eth0"].up)
        await watch.until(lambda: PEER not in watch.topology.next_hops)
        assert watch.mac(OTHER) is not None
        wire.gateway.ip("link set eth0 up")
        await watch.until(lambda: watch.mac(PEER) == mac(wire.peer.mac("eth0")))
        assert watch.topology.interfaces["eth0"].index == index


async def test_follows_mtu_and_mac_of_an_interface(wire: Wire) -> None:
    """A changed MTU and MAC of the gateway's own interface show up, in next hops as well."""
    async with following(PEER) as watch:
        wire.gateway.ip("link set eth0 mtu 1400", f"link set eth0 address {NEW_MAC}")
        await watch.until(lambda: watch.topology.interfaces["eth0"].mac == mac(NEW_MAC))
        assert watch.topology.interfaces["eth0"].mtu == 1400
        assert watch.topology.next_hops[PEER].source_mac == mac(NEW_MAC)


async def test_follows_an_interface_that_is_removed_and_made_again(wire: Wire) -> None:
    """A new interface of the old name has another index, and its neighbours are found anew."""
    async with following(PEER) as watch:
        former = watch.topology.interfaces["eth0"]
        wire.gateway.ip("link del eth0")
        await watch.until(lambda: "eth0" not in watch.topology.interfaces)
        assert PEER not in watch.topology.next_hops
        wire.cable("eth0")
        await watch.until(lambda: watch.mac(PEER) == mac(wire.peer.mac("eth0")))
        assert watch.topology.interfaces["eth0"].index != former.index
        assert watch.topology.next_hops[PEER].ifindex == watch.topology.interfaces["eth0"].index


async def test_asks_until_a_peer_comes_up(wire: Wire) -> None:
    """An unanswered target is named by ``settle``, and found once its host answers ARP."""
    wire.peer.ip("link set eth0 arp off")
    watch = Watch()
    async with Follower(("eth0",), watch, pace=QUICK) as watch.follower:
        await watch.follower.set_targets({PEER, OTHER})
        assert await watch.follower.settle(0.3) == {PEER}
        wire.peer.ip("link set eth0 arp on")
        assert await watch.follower.settle(5.0) == frozenset()
        assert watch.mac(PEER) == mac(wire.peer.mac("eth0"))
        await watch.follower.set_targets({OTHER})
        assert watch.topology.next_hops.keys() == {OTHER}


async def test_follows_local_addresses(wire: Wire) -> None:
    """Addresses of the host come and go, and a target that becomes one has no next hop."""
    async with following(PEER, OTHER) as watch:
        wire.gateway.ip(f"addr add {OTHER}/32 dev lo")
        await watch.until(lambda: OTHER in watch.topology.local_addresses)
        assert OTHER not in watch.topology.next_hops
        wire.gateway.ip(f"addr del {OTHER}/32 dev lo")
        await watch.until(lambda: watch.mac(OTHER) is not None)
        assert OTHER not in watch.topology.local_addresses


async def test_many_changes_at_once_are_one_change_for_the_caller(wire: Wire) -> None:
    """Routes that do not concern a target are no change, and a batch is gathered."""
    async with following(PEER) as watch:
        before = watch.changes
        wire.gateway.ip(
            *(f"route add 10.50.{number}.0/24 via 10.0.0.2" for number in range(200)),
            *(f"addr add 10.60.0.{number}/32 dev lo" for number in range(1, 50)),
        )
        last = IPv4Address("10.60.0.49")
        await watch.until(lambda: last in watch.topology.local_addresses)
        assert watch.changes - before <= 10


async def test_recovers_from_an_overrun(wire: Wire, caplog: pytest.LogCaptureFixture) -> None:
    """When events were lost, everything is read again, and following goes on as before."""
    async with following(PEER, event_buffer_bytes=4096) as watch:
        # The follower's thread is busy in here, so nothing is read until the buffer has run over.
        wire.gateway.ip(
            *(f"route add 10.50.{number}.0/24 via 10.0.0.2" for number in range(200)),
            "link set eth0 mtu 1300",
            "addr add 10.60.0.1/32 dev lo",
        )
        added = IPv4Address("10.60.0.1")
        await watch.until(lambda: added in watch.topology.local_addresses)
        assert watch.topology.interfaces["eth0"].mtu == 1300
        assert watch.mac(PEER) == mac(wire.peer.mac("eth0"))
        assert "netlink overrun" in caplog.text
        wire.gateway.ip("addr del 10.60.0.1/32 dev lo")
        await watch.until(lambda: added not in watch.topology.local_addresses)


async def test_lets_errors_of_its_block_through_as_they_are(wire: Wire) -> None:
    """What goes wrong inside the block is not wrapped, so that callers can tell errors apart."""
    assert wire
    with pytest.raises(LookupError, match="of the block"):
        async with Follower(("eth0",), lambda: None):
            raise LookupError("of the block")


async def test_lets_a_mistake_in_the_callback_out(wire: Wire) -> None:
    """An exception of ``on_change`` ends the follower and comes out of its block."""

    def on_change() -> None:
        raise LookupError("mistake")

    async def follow_for_ever() -> None:
        async with Follower(("eth0",), on_change):
            wire.gateway.ip("link set eth0 mtu 1300")
            await asyncio.Event().wait()

    with pytest.raises(ExceptionGroup) as caught:
        await follow_for_ever()
    assert caught.group_contains(LookupError, match="mistake")
