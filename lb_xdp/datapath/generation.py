"""One generation: the maps that a structure is compiled into, and the programs that read them.

A generation is built completely, and pinned, before any interface runs it. Afterwards only rings
and backend records change in it. The controller that starts next reads it back from its pins.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path

import numpy as np

from lb_xdp.core.desired import BackendId, BackendRecord, Structure
from lb_xdp.core.model import Address, ServiceKey, TunnelSources
from lb_xdp.core.plan import Observed, Plan
from lb_xdp.core.settle import RingImage
from lb_xdp.datapath import syscall
from lb_xdp.datapath.addresses import from_words, to_words
from lb_xdp.datapath.blueprint import Blueprint, draw, encode_table
from lb_xdp.datapath.compile import (
    ENTRY,
    GENERAL,
    Code,
    placeholder,
)
from lb_xdp.datapath.endpoints import (
    Endpoint,
    read_table,
)
from lb_xdp.datapath.layout import layout
from lb_xdp.datapath.load import Program, load_program
from lb_xdp.datapath.maps import (
    MAX_SNATS,
    BpfMap,
    TableShape,
    Values,
    generation_specs,
)
from lb_xdp.datapath.records import encode_records, read_records, write_limit, write_limits
from lb_xdp.datapath.rings import read_ring, write_fresh, write_ring
from lb_xdp.datapath.structure import read_endpoints
from lb_xdp.errors import DatapathError, MapError

PROGRAM = "program"
_WORD_BITS = 32


@dataclass(slots=True)
class Generation:
    """An open generation. ``rings`` gives each service's index in the ring map.

    ``limits`` is the gateway's, not the generation's: whoever opened it closes it.
    """

    number: int
    maps: dict[str, BpfMap]
    program: Program
    rings: dict[ServiceKey, int]
    limits: BpfMap

    def close(self) -> None:
        """Close all descriptors; what is pinned or attached lives on."""
        _close(self.maps)
        os.close(self.program.fd)

    def pin(self, folder: Path) -> None:
        """Pin the maps first and the program last: a folder with a program is complete.

        The table of programs is pinned as well: unpinned it would be emptied with its last user.
        """
        folder.mkdir(mode=0o700)
        for name, bpf_map in self.maps.items():
            bpf_map.pin(folder / name)
        try:
            syscall.pin(self.program.fd, str(folder / PROGRAM))
        except OSError as error:
            raise DatapathError(f"{folder}: cannot be pinned: {error.strerror}") from error

    def write_record(self, identity: BackendId, index: int, record: BackendRecord) -> None:
        """Write what the program needs to reach a backend, and what it allows it."""
        write_limit(self.limits, index, record)
        self.maps["backends"].write_block([index], encode_records({identity: record}))

    def fill(self, plan: Plan, held: Plan | None = None) -> None:
        """Write the records and rings of a plan into a generation that nothing runs yet.

        ``held`` is the plan that it was filled by before: what is the same there stays.
        """
        before = held.records if held else {}
        changed = {i: record for i, record in plan.records.items() if before.get(i) != record}
        if changed:
            indices = [plan.indices[identity] for identity in changed]
            self.maps["backends"].write_block(indices, encode_records(changed))
        write_fresh(
            self.maps["rings"],
            (
                (self.rings[service], image)
                for service, image in plan.rings.items()
                if held is None or not image.same_as(held.rings.get(service))
            ),
        )

    def allow(self, plan: Plan) -> None:
        """Write what the backends of a plan are allowed.

        That is the gateway's, not the generation's: it waits until the plan is carried out.
        """
        write_limits(self.limits, {plan.indices[i]: record for i, record in plan.records.items()})

    def write_ring(self, service: ServiceKey, image: RingImage) -> None:
        """Write a whole ring at once. A reader may see old and new slots mixed: all are valid."""
        write_ring(self.maps["rings"], self.rings[service], image)

    def indices(self) -> set[int]:
        """Return the backend indices that mean something here."""
        return set(read_records(self.maps["backends"], self.limits)[1].values())

    def observe(self) -> Observed:
        """Read everything back, as the controller's picture of the kernel."""
        records, indices = read_records(self.maps["backends"], self.limits)
        structure = _read_structure(self.maps, frozenset(indices))
        held = self.maps["rings"]
        rings = {service: read_ring(held, number) for service, number in self.rings.items()}
        return Observed(self.number, structure, indices, records, rings)


def load_generation(
    plan: Plan, persistent: Mapping[str, BpfMap], blueprint: Blueprint
) -> Generation:
    """Create a generation's maps and load its programs. Raises DatapathError.

    Its rings and records are empty: ``fill`` writes them. Blocks as long as the verifier takes.
    """
    with ExitStack() as undo:
        maps: dict[str, BpfMap] = {}
        for spec in generation_specs(len(blueprint.rings), blueprint.shape):
            maps[spec.name] = undo.enter_context(BpfMap.create(spec))
        maps["endpoints"].write(0, encode_table(plan.structure, blueprint))
        for number, address in enumerate(_by_family(plan.structure.snat_addresses)):
            maps["snats"].write(number, (to_words(address), address.version, [0, 0, 0]))
        program = load_programs(blueprint.code, {**maps, **persistent})
        undo.pop_all()
    return Generation(plan.generation, maps, program, blueprint.rings, persistent["limits"])


def build_generation(plan: Plan, persistent: Mapping[str, BpfMap]) -> Generation:
    """Create, load and fill a generation; nothing runs it yet. Raises DatapathError."""
    generation = load_generation(plan, persistent, draw(plan))
    try:
        generation.fill(plan)
        generation.allow(plan)
    except BaseException:
        generation.close()
        raise
    return generation


def load_programs(code: Code, maps: Mapping[str, BpfMap]) -> Program:
    """Load the programs onto maps; the general ones go into their table. Raises VerifierError.

    The verifier looks at all of them at once, on a CPU each.
    """
    descriptors = {placeholder(name): bpf_map.fd for name, bpf_map in maps.items()}
    sources = {ENTRY: code.gateway, **code.general}
    with ExitStack() as held:

        def load(name: str) -> Program:
            program = load_program(sources[name], descriptors, name)
            held.callback(os.close, program.fd)
            return program

        with ThreadPoolExecutor(len(sources)) as verifiers:
            programs = dict(zip(sources, verifiers.map(load, sources), strict=True))
        for name in code.general:
            maps["programs"].write(layout().constants[GENERAL[name]], programs[name].fd)
        return replace(programs[ENTRY], fd=os.dup(programs[ENTRY].fd))


def _by_family(addresses: tuple[Address, ...]) -> list[Address]:
    return sorted(addresses[:MAX_SNATS], key=lambda address: (address.version, int(address)))


def _close(maps: Mapping[str, BpfMap]) -> None:
    for bpf_map in maps.values():
        bpf_map.close()


def open_generation(folder: Path, number: int, limits: BpfMap) -> Generation:
    """Reopen a pinned generation. Raises MapError for another geometry, FileNotFoundError."""
    program_fd = syscall.open_pin(str(folder / PROGRAM))
    program = Program(program_fd, syscall.program_info(program_fd).id)
    maps: dict[str, BpfMap] = {}
    try:
        services, shape = _geometry(folder)
        for spec in generation_specs(services, shape):
            maps[spec.name] = BpfMap.reopen(spec, folder / spec.name)
        found = read_endpoints(_read_tables(maps["endpoints"]))
    except BaseException:
        _close(maps)
        os.close(program_fd)
        raise
    return Generation(number, maps, program, found.rings, limits)


def _geometry(folder: Path) -> tuple[int, TableShape]:
    """Return what differs from generation to generation: services, and the table's shape."""
    fd = syscall.open_pin(str(folder / "rings"))
    services = syscall.map_info(fd).max_entries
    os.close(fd)
    fd = syscall.open_pin(str(folder / "endpoints"))
    try:
        raw = np.zeros(syscall.map_info(fd).value_size, np.uint8)
        syscall.map_lookup(fd, np.zeros(1, np.uint32), raw)
    finally:
        os.close(fd)
    dtype = layout().structs["lb_table_head"]
    head = np.resize(raw, dtype.itemsize).view(dtype)[0]
    bits = [int(head[name]) for name in ("filter_bits", "bucket_bits", "bucket6_bits")]
    # Of another layout: reopening the map, of a shape that is possible, then says so.
    return services, TableShape(*(min(max(bit, 6), 24) for bit in bits))


def _element(bpf_map: BpfMap, index: int) -> Values:
    """Read an array's element, which is there unless the map is not what it claims to be."""
    value = bpf_map.read(index)
    if value is None:
        raise MapError(f"map {bpf_map.spec.name}[{index}] cannot be read")
    return value


def _read_tables(endpoints: BpfMap) -> list[Endpoint]:
    table = _element(endpoints, 0)[0]
    return [*read_table(table["bucket"]["entry"]), *read_table(table["bucket6"]["entry"])]


def _read_structure(maps: Mapping[str, BpfMap], backends: frozenset[BackendId]) -> Structure:
    head = _element(maps["endpoints"], 0)["head"][0]
    found = read_endpoints(_read_tables(maps["endpoints"]))
    host_bits = int(head["tunnel_host_mask"]).bit_length()
    sources = TunnelSources(
        IPv4Network((IPv4Address(int(head["tunnel_source"])), _WORD_BITS - host_bits)),
        IPv6Network((IPv6Address(head["tunnel_source6"].tobytes()), int(head["tunnel_prefix6"]))),
    )
    snats = (_element(maps["snats"], n)[0] for n in range(int(head["snats"] + head["snats6"])))
    return Structure(
        build=int(head["build"]),
        services=found.services,
        backends=backends,
        local_addresses=found.local_addresses,
        macs=found.macs,
        snat_addresses=tuple(from_words(snat["address"], int(snat["family"])) for snat in snats),
        tunnel_sources=sources,
        gue_port=int(head["gue_port"]),
        flow_entries=int(head["flow_entries"]),
    )
