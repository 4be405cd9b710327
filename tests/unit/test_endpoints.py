"""The endpoint table finds exactly what was put in, with one bucket read for each lookup."""

from __future__ import annotations

import struct
import sys
from collections.abc import Mapping
from ipaddress import IPv4Address

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lb_xdp.core.desired import BackendId, Structure
from lb_xdp.core.model import BackendKey, Mode, Protocol, ServiceKey
from lb_xdp.datapath.endpoints import (
    Endpoint,
    EndpointTable,
    build_table,
    read_table,
    structure_endpoints,
)
from lb_xdp.datapath.layout import layout

Place = tuple[int, int, int]


def find(table: EndpointTable, place: Place) -> tuple[int, int] | None:
    """Look up as the program does: one bucket, its entries in order. Returns kind and index."""
    key = int.from_bytes(struct.pack(">IHBx", *place), sys.byteorder)
    bucket = (key * table.factor & 0xFFFF_FFFF_FFFF_FFFF) >> 64 - table.bucket_bits
    for entry in table.entries[bucket]:
        if (int(entry["address"]), int(entry["port"]), int(entry["protocol"])) == place:
            return (int(entry["kind"]), int(entry["index"])) if entry["kind"] else None
    return None


def random_places(count: int, seed: int) -> list[Place]:
    """Return different places: few addresses, many ports, as configurations have them."""
    random = np.random.default_rng(seed)
    addresses = random.integers(1, 2**32, count // 8 + 1)
    places: dict[Place, None] = {}
    while len(places) < count:
        address = int(random.choice(addresses))
        places[address, int(random.integers(1, 65_536)), int(random.choice([6, 17]))] = None
    return list(places)


def table_of(known: Mapping[Place, tuple[int, int]]) -> EndpointTable:
    return build_table([Endpoint(*place, *value) for place, value in known.items()])


@pytest.mark.parametrize("count", [1, 63, 64, 65, 1000, 3000])
def test_lookups_agree_with_a_dictionary(count: int) -> None:
    """Whatever is in the table is found with its kind and index, whatever is not is not."""
    known = {
        place: (1 + number % 4, number) for number, place in enumerate(random_places(count, count))
    }
    table = table_of(known)
    probes = random_places(500, seed=count + 1) + list(known)[:1500]
    assert [find(table, place) for place in probes] == [known.get(place) for place in probes]
    assert table.entries.shape == (1 << table.bucket_bits, 4)


@settings(max_examples=50)
@given(
    st.dictionaries(
        st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 65_535), st.sampled_from([0, 6, 17])),
        st.tuples(st.integers(1, 4), st.integers(0, 2**32 - 1)),
        min_size=1,
        max_size=40,
    )
)
def test_a_table_reads_back_as_it_was_written(known: dict[Place, tuple[int, int]]) -> None:
    """The controller that starts next finds every endpoint in the kernel, and no other."""
    wanted = {Endpoint(*place, *value) for place, value in known.items()}
    assert set(read_table(table_of(known).entries)) == wanted


def test_places_that_differ_in_one_part_are_kept_apart() -> None:
    """Address, port and protocol all count."""
    places = [(a, p, q) for a in (1, 2, 1 << 31) for p in (80, 443) for q in (6, 17)]
    table = table_of({place: (1, number) for number, place in enumerate(places)})
    assert [find(table, place) for place in places] == [(1, n) for n in range(len(places))]


def structure_of(mode: Mode) -> tuple[Structure, dict[BackendId, int], dict[ServiceKey, int]]:
    """Two services with one VIP over the same backend."""
    vip, gateway = IPv4Address("203.0.113.10"), IPv4Address("10.2.0.1")
    services = [ServiceKey(vip, port, Protocol.TCP) for port in (80, 81)]
    backend = BackendKey(IPv4Address("10.2.0.11"), 8080)
    indices = {BackendId(key, backend): number + 5 for number, key in enumerate(services)}
    local = frozenset({gateway}) if mode is Mode.NAT else frozenset()
    structure = Structure(1, dict.fromkeys(services, mode), frozenset(indices), local, frozenset())
    return structure, indices, {key: number for number, key in enumerate(services)}


def test_nat_endpoints() -> None:
    """Services by ring, a shared backend once by its lowest index, addresses by what they are."""
    constants = layout().constants
    table = build_table(structure_endpoints(*structure_of(Mode.NAT)))
    vip, gateway, backend = (
        int(IPv4Address(text)) for text in ("203.0.113.10", "10.2.0.1", "10.2.0.11")
    )
    assert find(table, (vip, 81, 6)) == (constants["LB_KIND_SERVICE_NAT"], 1)
    assert find(table, (backend, 8080, 6)) == (constants["LB_KIND_BACKEND"], 5)
    address = constants["LB_KIND_ADDRESS"]
    assert find(table, (vip, 0, 0)) == (address, constants["LB_ADDRESS_VIP"])
    assert find(table, (gateway, 0, 0)) == (address, constants["LB_ADDRESS_LOCAL"])
    assert find(table, (backend, 8080, 17)) is None


def test_dsr_endpoints() -> None:
    """A dsr backend's own address is no endpoint: nothing about it is rewritten."""
    table = build_table(structure_endpoints(*structure_of(Mode.DSR)))
    assert find(table, (int(IPv4Address("10.2.0.11")), 8080, 6)) is None
    assert len(read_table(table.entries)) == 3
