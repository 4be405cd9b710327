"""What a snapshot of the flow table tells: what is over, and which slots the rest falls on."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lb_xdp.core.collect import (
    BACKEND_FIN,
    CLIENT_FIN,
    CLOSED,
    COUNTED,
    OPENING,
    by_backend,
    forgotten,
    over,
    recorded_slots,
    unreleased,
)
from lb_xdp.core.desired import Schedule, Traits
from lb_xdp.core.flow_hash import flow_hash, flow_hash6, ring_slot, source_hash
from lb_xdp.core.model import ANY_PORT, IPV6, FlowTable, Mode, Protocol, ServiceKey
from lb_xdp.core.ring import RING_SLOTS
from lb_xdp.datapath.layout import layout
from tests.support.flows import Flow, flow_keys

TIMES = FlowTable(
    tcp_idle_s=1000.0, tcp_opening_s=20.0, tcp_closing_s=30.0, udp_idle_s=40.0, settle_s=1.0
)
HZ = 250
IDENTITIES = np.array([0, 0xA1, 0xB2], np.uint32)
CLIENT, VIP, OTHER = (ip_address(text) for text in ("192.0.2.7", "203.0.113.10", "203.0.113.11"))
CLIENT6, VIP6 = (ip_address(text) for text in ("2001:db8::7", "2001:db8:1::10"))
TCP, UDP = Protocol.TCP.number, Protocol.UDP.number

BY_FLOW = Traits(
    Mode.DSR,
    Schedule.HASH,
    tracked=False,
    by_source=False,
    client=False,
    prefix=False,
    reject=False,
    limited=False,
    counted=False,
    stateless=False,
)
BY_SOURCE = BY_FLOW._replace(by_source=True)


def values(*rows: tuple[int, int, int, int]) -> npt.NDArray[np.void]:
    """Return records: state, backend, identity, seen."""
    found: npt.NDArray[np.void] = np.zeros(len(rows), layout().structs["lb_flow"])
    for name, column in zip(("state", "backend", "identity", "seen"), zip(*rows, strict=True),
                            strict=True):  # fmt: skip
        found[name] = column
    return found


def is_over(state: int, protocol: int, silent_s: float, *, now: int = 10**9, backend: int = 1,
            identity: int = 0xA1) -> bool:  # fmt: skip
    seen = (now - round(silent_s * HZ)) % 2**32
    found = over(
        flow_keys([(CLIENT, VIP, 1024, 80, protocol)]),
        values((state, backend, identity, seen)),
        now_jiffies=now,
        hz=HZ,
        times=TIMES,
        identities=IDENTITIES,
    )
    return bool(found[0])


@pytest.mark.parametrize("now", [10**9, 2**32 - 1, 7])
@pytest.mark.parametrize(
    ("state", "protocol", "limit_s"),
    [
        (0, TCP, TIMES.tcp_idle_s),
        (COUNTED, TCP, TIMES.tcp_idle_s),
        (OPENING, TCP, TIMES.tcp_opening_s),
        (CLOSED, TCP, TIMES.tcp_closing_s),
        (CLOSED | OPENING, TCP, TIMES.tcp_closing_s),
        (CLOSED | CLIENT_FIN, TCP, TIMES.tcp_closing_s * 4),
        (CLOSED | CLIENT_FIN | BACKEND_FIN, TCP, TIMES.tcp_closing_s),
        (0, UDP, TIMES.udp_idle_s),
        (CLOSED, UDP, TIMES.udp_idle_s),
    ],
)
def test_a_silent_record_is_over(state: int, protocol: int, limit_s: float, now: int) -> None:
    """Each kind of flow has its time, and a second for a ``seen`` that is behind; clocks wrap."""
    assert not is_over(state, protocol, limit_s + 1, now=now)
    assert is_over(state, protocol, limit_s + 1.1, now=now)


def test_a_record_seen_after_the_clock_was_read_is_not_over() -> None:
    """A packet may come between reading the clock and reading the record."""
    assert not is_over(OPENING, TCP, -3)
    assert not is_over(OPENING, TCP, -3, now=2**32 - 2)


@pytest.mark.parametrize(
    ("backend", "identity", "expected"),
    [(1, 0xA1, False), (2, 0xB2, False), (2, 0xA1, True), (0, 7, True), (3, 0xA1, True)],
)
def test_a_void_record_is_over(backend: int, identity: int, *, expected: bool) -> None:
    """A record of a backend that is gone, or that had the index before, is removed at once."""
    assert is_over(0, TCP, 0, backend=backend, identity=identity) == expected


def test_counts_by_backend() -> None:
    """Records are counted by index; those that still hold a connection are told apart."""
    records = values((COUNTED, 1, 0, 0), (COUNTED | CLOSED, 1, 0, 0), (0, 2, 0, 0),
                     (COUNTED | OPENING, 2, 0, 0), (COUNTED, 9, 0, 0))  # fmt: skip
    assert unreleased(records).tolist() == [True, False, False, True, True]
    assert by_backend(records, np.ones(5, bool), 4).tolist() == [0, 2, 2, 0]
    assert by_backend(records, unreleased(records), 4).tolist() == [0, 1, 1, 0]


SERVICES = {
    ServiceKey(VIP, 80, Protocol.TCP): BY_FLOW,
    ServiceKey(VIP, ANY_PORT, Protocol.TCP): BY_SOURCE,
    ServiceKey(VIP, 80, Protocol.UDP): BY_SOURCE,
    ServiceKey(VIP6, 80, Protocol.TCP): BY_FLOW,
    ServiceKey(VIP6, ANY_PORT, Protocol.UDP): BY_SOURCE,
    ServiceKey(OTHER, 443, Protocol.TCP): BY_FLOW,
}


def expected_slots(flows: list[Flow]) -> dict[ServiceKey, list[int]]:
    """Say the same, one flow at a time."""
    found: dict[ServiceKey, set[int]] = {key: set() for key in SERVICES}
    for source, destination, sport, dport, number in flows:
        protocol = next(one for one in Protocol if one.number == number)
        exact, wild = (ServiceKey(destination, port, protocol) for port in (dport, ANY_PORT))
        key = exact if exact in SERVICES else wild
        if key not in SERVICES:
            continue
        hashed = flow_hash6 if source.version == IPV6 else flow_hash
        found[key].add(
            ring_slot(
                source_hash(source)
                if SERVICES[key].by_source
                else hashed(int(source), int(destination), sport, dport, number),
                RING_SLOTS,
            )
        )
    return {key: sorted(slots) for key, slots in found.items()}


ports = st.one_of(st.sampled_from([80, 443, 8080]), st.integers(1, 65_535))
flow_lists = st.lists(
    st.one_of(
        st.tuples(
            st.integers(0, 2**32 - 1).map(IPv4Address),
            st.sampled_from([VIP, OTHER, CLIENT]),
            ports,
            ports,
            st.sampled_from([TCP, UDP]),
        ),
        st.tuples(
            st.integers(0, 2**128 - 1).map(IPv6Address),
            st.sampled_from([VIP6, CLIENT6]),
            ports,
            ports,
            st.sampled_from([TCP, UDP]),
        ),
    ),
    max_size=40,
)


@given(flow_lists)
def test_records_fall_on_the_slots_that_their_flows_do(flows: list[Flow]) -> None:
    """Each flow counts for the service that takes it, by the hash that this service uses."""
    found = recorded_slots(flow_keys(flows), SERVICES)
    assert {key: slots.tolist() for key, slots in found.items()} == expected_slots(flows)


def test_services_without_records_are_named_too() -> None:
    """Every service has its answer: an empty one says that all marks can go."""
    found = recorded_slots(flow_keys([]), SERVICES)
    assert {key: len(slots) for key, slots in found.items()} == dict.fromkeys(SERVICES, 0)
    assert recorded_slots(flow_keys([(CLIENT, VIP, 1, 80, TCP)]), {}) == {}


def test_a_small_ring_has_its_own_slots() -> None:
    """The number of slots is an argument: a hash is scaled to it."""
    key = ServiceKey(VIP, 80, Protocol.TCP)
    flows: list[Flow] = [(CLIENT, VIP, port, 80, TCP) for port in range(1000, 1100)]
    assert recorded_slots(flow_keys(flows), {key: BY_FLOW}, 7)[key].tolist() == list(range(7))


@pytest.mark.parametrize(
    ("port", "silent_s", "expected"),
    [(80, 61, False), (80, 61.1, True), (443, 61, False), (53, 0, True)],
    ids=["just remembered", "too long ago", "of any port", "of no service"],
)
def test_a_client_is_forgotten_after_its_services_time(
    port: int, silent_s: float, *, expected: bool
) -> None:
    """A client without flows stays bound for the service's time, and not at all without one."""
    vip, number = (OTHER, UDP) if port == 53 else (VIP, TCP)
    affinity_s = {
        ServiceKey(VIP, 80, Protocol.TCP): 60,
        ServiceKey(VIP, ANY_PORT, Protocol.TCP): 1000,
    }
    found = forgotten(
        flow_keys([(CLIENT, vip, 0, port, number)]),
        np.array([2**32 - round(silent_s * HZ) + 5 & 2**32 - 1], np.uint32),
        now_jiffies=5,
        hz=HZ,
        affinity_s=affinity_s,
    )
    assert found.tolist() == [expected]


def test_constants_are_those_of_the_headers() -> None:
    """The bits of a record's state are declared in C."""
    constants = layout().constants
    names = ("OPENING", "COUNTED", "CLIENT_FIN", "BACKEND_FIN", "CLOSED")
    found = [constants[f"LB_FLOW_{name}"] for name in names]
    assert found == [OPENING, COUNTED, CLIENT_FIN, BACKEND_FIN, CLOSED]
