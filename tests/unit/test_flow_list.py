"""Recorded flows: chosen, named and counted; and flows as they begin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lb_xdp.core.collect import CLOSED, OPENING
from lb_xdp.core.desired import BackendId
from lb_xdp.core.flow_list import FlowRecords, FlowState, Wanted, list_flows
from lb_xdp.core.model import Config, Protocol
from lb_xdp.core.report import Count
from lb_xdp.datapath.layout import layout
from lb_xdp.live_flows import LiveFlows
from tests.support.flows import flow_keys
from tests.support.writings import VIP, config
from tests.unit.test_preview import at_work

HZ = 250
CONFIG = config(100, 100, algorithm="least_connections")
INDICES = {
    BackendId(service.key, backend.key): number
    for service, backend in CONFIG.backends()
    for number in [int(backend.address) & 0xF]
}
FIRST, SECOND = sorted(INDICES.values())


def records(*flows: tuple[str, int, int, int]) -> FlowRecords:
    """Return records: client, its port, index of the backend, state; silent for 3 s."""
    vip = ip_address(VIP)
    tcp = Protocol.TCP.number
    keys = flow_keys([(ip_address(who), vip, port, 80, tcp) for who, port, _, _ in flows])
    values = np.zeros(len(flows), layout().structs["lb_flow"])
    values["backend"] = [index for _, _, index, _ in flows]
    values["state"] = [state for *_, state in flows]
    values["seen"] = 2**32 - HZ
    return FlowRecords(keys, values, 2 * HZ, HZ)


TABLE = records(
    ("192.0.2.7", 1, FIRST, 0),
    ("192.0.2.7", 2, FIRST, CLOSED),
    ("192.0.2.8", 3, SECOND, OPENING),
    ("198.51.100.1", 4, 999, 0),
)


@pytest.mark.parametrize(
    ("wanted", "ports"),
    [
        (Wanted(), [1, 2, 3, 4]),
        (Wanted(limit=2), [1, 2]),
        (Wanted(limit=0), []),
        (Wanted(service="web"), [1, 2, 3, 4]),
        (Wanted(service="dns"), []),
        (Wanted(backend="web1"), [1, 2]),
        (Wanted(client=IPv4Network("192.0.2.0/24")), [1, 2, 3]),
        (Wanted(client=IPv4Network("192.0.2.8")), [3]),
        (Wanted(client=IPv6Network("::/0")), []),
        (Wanted(backend="web1", client=IPv4Network("192.0.2.8")), []),
    ],
)
def test_flows_that_match_everything_asked(wanted: Wanted, ports: list[int]) -> None:
    """In the table's order, at most the limit."""
    found = list_flows(TABLE, CONFIG, INDICES, wanted)
    assert [flow.client_port for flow in found.flows] == ports
    assert found.recorded == 4


def test_a_flow_has_names_and_times() -> None:
    """Across the wrap of jiffies as well; a backend that has just gone has a number for a name."""
    found = list_flows(TABLE, CONFIG, INDICES, Wanted())
    one = found.flows[0]
    assert (one.service, one.backend, one.client, one.vip) == ("web", "web1", "192.0.2.7", VIP)
    assert (one.port, one.protocol, one.silent_s) == (80, "tcp", 3)
    states = [flow.state for flow in found.flows]
    assert states == [FlowState.OPEN, FlowState.CLOSED, FlowState.OPENING, FlowState.OPEN]
    assert found.flows[3].backend == "#999"


def test_counts_are_of_all_that_match() -> None:
    """Whatever the limit is; clients with the most flows come first."""
    found = list_flows(TABLE, CONFIG, INDICES, Wanted(limit=1))
    assert [(b.backend, b.flows, b.open) for b in found.backends] == [
        ("web1", 2, 1),
        ("web2", 1, 1),
    ]
    assert [(c.client, c.flows, c.open) for c in found.clients] == [
        ("192.0.2.7", 2, 1),
        ("192.0.2.8", 1, 1),
        ("198.51.100.1", 1, 1),
    ]
    assert (found.matched, found.not_recorded) == (4, ())


def test_an_empty_table_and_services_without_records() -> None:
    """Nothing is no mistake; whose flows have no record is named."""
    untracked = config(100)
    found = list_flows(records(), untracked, {}, Wanted())
    assert (found.matched, found.backends, found.clients) == (0, (), ())
    assert found.not_recorded == ("web",)


@given(st.lists(st.integers(0, 2**32 - 1), max_size=20), st.integers(0, 32), st.integers(0, 2**32))
def test_prefixes_are_those_of_ipaddress(clients: list[int], length: int, at: int) -> None:
    """A client is found exactly if the standard library says that it is in the network."""
    network = IPv4Network((at % 2**32, length), strict=False)
    table = records(*((str(IPv4Address(one)), 1, FIRST, 0) for one in clients))
    found = list_flows(table, CONFIG, INDICES, Wanted(client=network, limit=100))
    assert found.matched == sum(IPv4Address(one) in network for one in clients)


@dataclass
class Counters:
    """A datapath's counters of flows, all the same of every backend."""

    flows: int = 0

    def backend_counts(self, indices: Mapping[BackendId, int]) -> Mapping[BackendId, Count]:
        return {identity: _Count(self.flows) for identity in indices}

    def flow_records(self) -> FlowRecords:
        return TABLE


@dataclass(frozen=True)
class _Count:
    flows: int
    packets: int = 0
    bytes: int = 0
    reply_packets: int = 0
    reply_bytes: int = 0
    connections: int = 0


def test_flows_that_began_lately() -> None:
    """Since the oldest sample, which is 15 minutes old at most; nothing is said too early."""
    now_s, counters = 0.0, Counters()
    reconciler = at_work(config(100, 100))
    flows = LiveFlows(reconciler, counters, lambda: now_s)
    assert flows.begun() is None
    flows.sample()
    assert flows.begun() is None
    now_s, counters.flows = 30.0, 5
    begun = flows.begun()
    (service,) = reconciler.config.services
    assert begun is not None
    assert (begun.window_s, begun.flows[service.key]) == (30.0, 10)
    for _ in range(40):
        now_s += 60
        counters.flows += 1
        flows.sample()
    begun = flows.begun()
    assert begun is not None
    assert (begun.window_s, begun.flows[service.key]) == (15 * 60, 30)
    counters.flows = 3  # counted anew since: a backend's index was another's meanwhile
    again = flows.begun()
    assert again is not None
    assert again.flows[service.key] == 6


async def test_records_are_sorted_by_service() -> None:
    """Evidence has the flows that have not ended, those of each service for themselves."""
    tracked: Config = config(100, 100, algorithm="least_connections")
    found = await LiveFlows(at_work(tracked), Counters()).evidence()
    ((_, held),) = found.held.items()
    assert held.backends.tolist() == [FIRST, SECOND, 999]
    listed: Any = await LiveFlows(at_work(tracked), Counters()).listed(Wanted(limit=1))
    assert listed.matched == 4
