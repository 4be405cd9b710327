"""Recorded flows for people: chosen from a copy of the flow table, named and counted.

Owns the choice by service, backend and client, and the counts per backend. It refuses to read the
table; keys and values are arrays as in ``core.collect``. Only what is recorded is here: where the
ring alone places a service's flows, nobody knows them one by one.

numpy is allowed here: a table has hundreds of thousands of records.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lb_xdp.core.collect import CLOSED, OPENING, Records, owners
from lb_xdp.core.desired import BackendId
from lb_xdp.core.model import ANY_PORT, IPV4, IPV6, Address, Config, Protocol, Service

Mask = npt.NDArray[np.bool_]

_CLIENTS = 10


class FlowRecords(NamedTuple):
    """A copy of the flow table. ``now_jiffies`` is the low 32 bits, ``hz`` jiffies in a second."""

    keys: Records
    values: Records
    now_jiffies: int
    hz: int


class FlowState(StrEnum):
    """How far a flow is. ``open`` is all that is neither: UDP flows have no other state."""

    OPENING = "opening"
    OPEN = "open"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which flows to list: those that match everything given, at most ``limit`` of them."""

    service: str | None = None
    backend: str | None = None
    client: IPv4Network | IPv6Network | None = None
    limit: int = 100


@dataclass(frozen=True, slots=True)
class Flow:
    """One recorded flow. ``silent_s`` is how long ago its last packet was, exact to a second."""

    service: str
    backend: str
    protocol: str
    client: str
    client_port: int
    vip: str
    port: int
    state: FlowState
    silent_s: int


@dataclass(frozen=True, slots=True)
class BackendFlows:
    """How many of the chosen flows are a backend's, and how many of them have not ended."""

    service: str
    backend: str
    flows: int
    open: int


@dataclass(frozen=True, slots=True)
class ClientFlows:
    """How many of the chosen flows are a client's, and how many of them have not ended."""

    client: str
    flows: int
    open: int


@dataclass(frozen=True, slots=True)
class FlowList:
    """The chosen flows: ``matched`` in all, the first ones of them, and the counts per backend.

    ``clients`` are those with the most flows, ten of them.

    ``recorded`` is how many records the table has. ``not_recorded`` names the chosen services of
    which not every flow has a record.
    """

    recorded: int
    matched: int
    flows: tuple[Flow, ...]
    backends: tuple[BackendFlows, ...]
    not_recorded: tuple[str, ...]
    clients: tuple[ClientFlows, ...] = ()


def list_flows(
    records: FlowRecords, config: Config, indices: Mapping[BackendId, int], wanted: Wanted
) -> FlowList:
    """Return the recorded flows that match ``wanted``; ``indices`` are the backends' own."""
    keys, values = records.keys, records.values
    services = config.services
    owner = owners(keys, [service.key for service in services])
    names = _names(services, indices)
    chosen = owner >= 0
    if wanted.service is not None:
        numbers = [n for n, service in enumerate(services) if service.name == wanted.service]
        chosen &= np.isin(owner, numbers)
    if wanted.backend is not None:
        fitting = [index for index, (_, name) in names.items() if name == wanted.backend]
        chosen &= np.isin(values["backend"], fitting)
    if wanted.client is not None:
        chosen &= _within(keys, wanted.client)
    found = np.flatnonzero(chosen)
    return FlowList(
        recorded=len(keys),
        matched=len(found),
        flows=tuple(
            _flow(records, int(i), services[int(owner[i])], names) for i in found[: wanted.limit]
        ),
        backends=_counts(values[found], names),
        not_recorded=tuple(
            service.name
            for service in services
            if not service.tracked and wanted.service in {None, service.name}
        ),
        clients=_clients(keys[found], values[found]),
    )


def _names(
    services: Sequence[Service], indices: Mapping[BackendId, int]
) -> dict[int, tuple[str, str]]:
    """Return by index the names of service and backend, in the file's order."""
    return {
        indices[identity]: (service.name, backend.name)
        for service in services
        for backend in service.pool.backends
        if (identity := BackendId(service.key, backend.key)) in indices
    }


def _counts(values: Records, names: Mapping[int, tuple[str, str]]) -> tuple[BackendFlows, ...]:
    length = max(names, default=0) + 1
    known = values["backend"] < length
    backends = values["backend"][known]
    closed = values["state"][known] & np.uint64(CLOSED) != 0
    flows = np.bincount(backends, minlength=length)
    ended = np.bincount(backends[closed], minlength=length)
    return tuple(
        BackendFlows(service, backend, int(flows[index]), int(flows[index] - ended[index]))
        for index, (service, backend) in names.items()
        if flows[index]
    )


def _clients(keys: Records, values: Records) -> tuple[ClientFlows, ...]:
    """Return the clients with the most flows."""
    if not len(keys):
        return ()
    sources = np.column_stack((keys["family"].astype(np.uint32), keys["source"].astype(np.uint32)))
    rows, which, flows = np.unique(sources, axis=0, return_inverse=True, return_counts=True)
    closed = values["state"] & np.uint64(CLOSED) != 0
    ended = np.bincount(which.reshape(-1)[closed], minlength=len(rows))
    most = np.argsort(-flows, kind="stable")[:_CLIENTS]
    return tuple(
        ClientFlows(
            str(_address(rows[i][1:], int(rows[i][0]))), int(flows[i]), int(flows[i] - ended[i])
        )
        for i in most
    )


def _flow(
    records: FlowRecords, at: int, service: Service, names: Mapping[int, tuple[str, str]]
) -> Flow:
    key, value = records.keys[at], records.values[at]
    index = int(value["backend"])
    port = int(key["destination_port"]) if service.port == ANY_PORT else service.port
    silent = np.array([records.now_jiffies - int(value["seen"]) & 0xFFFF_FFFF], np.uint32)
    return Flow(
        service=service.name,
        backend=names.get(index, ("", f"#{index}"))[1],  # just removed: no name any more
        protocol=Protocol(service.protocol).value,
        client=str(_address(key["source"], int(key["family"]))),
        client_port=int(key["source_port"]),
        vip=str(service.vip),
        port=port,
        state=_state(int(value["state"])),
        silent_s=max(0, int(silent.astype(np.int32)[0]) // records.hz),
    )


def _state(bits: int) -> FlowState:
    if bits & CLOSED:
        return FlowState.CLOSED
    return FlowState.OPENING if bits & OPENING else FlowState.OPEN


def _address(words: npt.NDArray[np.uint32], family: int) -> Address:
    """Return the address in four words, of which IPv4 uses the first."""
    first, *others = (int(word) for word in words)
    if family != IPV6:
        return IPv4Address(first)
    number = first
    for word in others:
        number = number << 32 | word
    return IPv6Address(number)


def _within(keys: Records, network: IPv4Network | IPv6Network) -> Mask:
    """Say of each flow whether its client is in a network."""
    is_ipv4 = network.version == IPV4
    shift = 96 if is_ipv4 else 0
    address, mask = int(network.network_address) << shift, int(network.netmask) << shift
    inside: Mask = keys["family"] == network.version
    for place, bits in enumerate((96, 64, 32, 0)):
        word_mask, word = mask >> bits & 0xFFFF_FFFF, address >> bits & 0xFFFF_FFFF
        inside &= keys["source"][:, place].astype(np.uint32) & np.uint32(word_mask) == word
    return inside
