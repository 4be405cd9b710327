"""The endpoint tables find exactly what was put in, with one bucket read for each lookup."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lb_xdp.core.desired import BackendId, Schedule, Structure, Traits
from lb_xdp.core.model import (
    GUE_PORT,
    Address,
    BackendKey,
    Mode,
    Protocol,
    ServiceKey,
    TunnelSources,
)
from lb_xdp.datapath.endpoints import (
    Endpoint,
    EndpointTable,
    build_filter,
    build_table,
    build_table6,
    filter_bit,
    read_table,
)
from lb_xdp.datapath.layout import layout
from lb_xdp.datapath.structure import read_endpoints, structure_endpoints

Place = tuple[int, int, int]
Known = Mapping[Place, tuple[int, int]]
U64 = 0xFFFF_FFFF_FFFF_FFFF
MIX = 0x9E37_79B9_7F4A_7C15
SIZES = {4: 4, 6: 16}


def bucket_number(table: EndpointTable, family: int, place: Place) -> int:
    """Return a key's bucket by the arithmetic of bpf/lb_hash.h, on words as they lie."""
    octets = place[0].to_bytes(SIZES[family]) + place[1].to_bytes(2) + bytes([place[2]])
    if family == 4:
        hashed = int.from_bytes(octets, sys.byteorder) * table.factors[0]
    else:
        words = [int.from_bytes(octets[at : at + 8], sys.byteorder) for at in (0, 8, 16)]
        high, low = table.factors
        hashed = words[1] * low + (words[0] ^ words[2] * MIX & U64) * high
    return (hashed & U64) >> 64 - table.bucket_bits


def find(table: EndpointTable, place: Place, family: int = 4) -> tuple[int, int] | None:
    """Look up as the program does: one bucket, its entries in order. Returns kind and index."""
    for entry in table.entries[bucket_number(table, family, place)]:
        address = int.from_bytes(np.array(entry["address"], ">u4").tobytes())
        if (address, int(entry["port"]), int(entry["protocol"])) == place:
            return (int(entry["kind"]), int(entry["index"])) if entry["kind"] else None
    return None


def random_places(count: int, seed: int, family: int) -> list[Place]:
    """Return different places: few addresses, many ports, as configurations have them."""
    random = np.random.default_rng(seed)
    addresses = [int.from_bytes(random.bytes(SIZES[family])) for _ in range(count // 8 + 1)]
    places: dict[Place, None] = {}
    while len(places) < count:
        address = addresses[int(random.integers(len(addresses)))]
        places[address, int(random.integers(1, 65_536)), int(random.choice([6, 17]))] = None
    return list(places)


def table_of(known: Known, family: int = 4) -> EndpointTable:
    build = build_table if family == 4 else build_table6
    return build([Endpoint(family, *place, *value) for place, value in known.items()])


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("count", [1, 63, 64, 65, 1000, 3000])
def test_lookups_agree_with_a_dictionary(count: int, family: int) -> None:
    """Whatever is in the table is found with its kind and index, whatever is not is not."""
    places = random_places(count, count, family)
    known = {place: (1 + number % 4, number) for number, place in enumerate(places)}
    table = table_of(known, family)
    probes = random_places(500, count + 1, family) + list(known)[:1500]
    assert [find(table, place, family) for place in probes] == [known.get(p) for p in probes]
    assert table.entries.shape == (1 << table.bucket_bits, 4)


@pytest.mark.parametrize("family", [4, 6])
@settings(max_examples=50)
@given(data=st.data())
def test_a_table_reads_back_as_it_was_written(family: int, data: st.DataObject) -> None:
    """The controller that starts next finds every endpoint in the kernel, and no other."""
    octets = 8 * SIZES[family]
    known: Known = data.draw(
        st.dictionaries(
            st.tuples(
                st.integers(0, 2**octets - 1), st.integers(0, 65_535), st.sampled_from([0, 6, 17])
            ),
            st.tuples(st.integers(1, 4), st.integers(0, 2**32 - 1)),
            min_size=1,
            max_size=40,
        )
    )
    wanted = {Endpoint(family, *place, *value) for place, value in known.items()}
    assert set(read_table(table_of(known, family).entries)) == wanted


@pytest.mark.parametrize("family", [4, 6])
def test_places_that_differ_in_one_part_are_kept_apart(family: int) -> None:
    """Address, port and protocol all count."""
    addresses = (1, 2, 1 << 31) if family == 4 else (1, 2, 1 << 64, 1 << 127)
    places = [(a, p, q) for a in addresses for p in (80, 443) for q in (6, 17)]
    table = table_of({place: (1, number) for number, place in enumerate(places)}, family)
    assert [find(table, p, family) for p in places] == [(1, n) for n in range(len(places))]


@pytest.mark.parametrize("family", [4, 6])
def test_the_filter_passes_all_that_is_there_and_little_else(family: int) -> None:
    """No address of the tables is filtered out; of strangers about one in sixteen gets through."""
    places = random_places(800, 1, family)
    endpoints = [Endpoint(family, *place, 1) for place in places]
    words = build_filter(endpoints)
    bits = (len(words) * 64 - 1).bit_length()

    def passes(address: int) -> bool:
        bit = filter_bit(family, address, bits)
        return bool(int(words[bit >> 6]) >> (bit & 63) & 1)

    assert all(passes(place[0]) for place in places)
    strangers = [place[0] for place in random_places(8000, 2, family)]
    assert sum(map(passes, strangers)) < len(strangers) / 8


PLAIN = Traits(
    mode=Mode.NAT,
    schedule=Schedule.HASH,
    tracked=False,
    by_source=False,
    client=False,
    prefix=False,
    reject=False,
    limited=False,
    counted=False,
    stateless=False,
)


VIP = IPv4Address("203.0.113.10")


def structure_of(
    mode: Mode, vip: Address = VIP
) -> tuple[Structure, dict[BackendId, int], dict[ServiceKey, int]]:
    """Two services with one VIP over the same backend."""
    old = vip.version == 4
    gateway: Address = IPv4Address("10.2.0.1") if old else IPv6Address("fd00:2::1")
    address: Address = IPv4Address("10.2.0.11") if old else IPv6Address("fd00:2::11")
    services = [ServiceKey(vip, port, Protocol.TCP) for port in (80, 81)]
    backend = BackendKey(address, 8080)
    indices = {BackendId(key, backend): number + 5 for number, key in enumerate(services)}
    structure = Structure(
        build=1,
        services=dict.fromkeys(services, PLAIN._replace(mode=mode)),
        backends=frozenset(indices),
        local_addresses=frozenset({gateway}) if mode is Mode.NAT else frozenset(),
        macs=frozenset(),
        snat_addresses=(),
        tunnel_sources=TunnelSources(),
        gue_port=GUE_PORT,
        flow_entries=1000,
    )
    return structure, indices, {key: number for number, key in enumerate(services)}


@pytest.mark.parametrize("vip", [IPv4Address("203.0.113.10"), IPv6Address("2001:db8::10")])
def test_nat_endpoints(vip: Address) -> None:
    """Services by ring, a shared backend once by its lowest index, addresses by what they are."""
    constants = layout().constants
    structure, indices, rings = structure_of(Mode.NAT, vip)
    family = vip.version
    build = build_table if family == 4 else build_table6
    table = build(structure_endpoints(structure, indices, rings))
    backend = next(iter(indices)).backend.address
    gateway = next(iter(structure.local_addresses))
    address = constants["LB_KIND_ADDRESS"]
    assert find(table, (int(vip), 81, 6), family) == (constants["LB_KIND_NAT"], 1)
    assert find(table, (int(backend), 8080, 6), family) == (constants["LB_KIND_BACKEND"], 5)
    assert find(table, (int(vip), 0, 0), family) == (address, constants["LB_ADDRESS_VIP"])
    assert find(table, (int(gateway), 0, 0), family) == (address, constants["LB_ADDRESS_LOCAL"])
    assert find(table, (int(backend), 0, 0), family) == (address, constants["LB_ADDRESS_BACKEND"])
    assert find(table, (int(backend), 8080, 17), family) is None


@pytest.mark.parametrize("mode", [Mode.DSR, Mode.IPIP, Mode.GUE, Mode.FULLNAT])
def test_only_nat_backends_are_endpoints(mode: Mode) -> None:
    """Where a reply does not come by the backend's own address, that is no endpoint."""
    table = build_table(structure_endpoints(*structure_of(mode)))
    assert find(table, (int(IPv4Address("10.2.0.11")), 8080, 6)) is None
    assert len(read_table(table.entries)) == 3


@settings(max_examples=40)
@given(
    mode=st.sampled_from(Mode),
    schedule=st.sampled_from(Schedule),
    flags=st.tuples(*[st.booleans()] * (len(PLAIN) - 2)),
    macs=st.frozensets(st.binary(min_size=6, max_size=6), max_size=3),
)
def test_services_and_macs_read_back(
    mode: Mode, schedule: Schedule, flags: tuple[bool, ...], macs: frozenset[bytes]
) -> None:
    """What a generation's table says of its services is what they were built from."""
    structure, indices, rings = structure_of(mode)
    traits = Traits(mode, schedule, *flags)
    structure = replace(structure, services=dict.fromkeys(structure.services, traits), macs=macs)
    table = build_table(structure_endpoints(structure, indices, rings))
    found = read_endpoints(read_table(table.entries))
    assert found.services == structure.services
    assert found.rings == rings
    assert found.macs == macs
    assert found.local_addresses == structure.local_addresses
