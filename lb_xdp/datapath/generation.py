"""One generation: the maps that a structure is compiled into, and the program that reads them.

A generation is built completely, and pinned, before any interface runs it. Afterwards only rings
and backend records change in it. The controller that starts next reads it back from its pins.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lb_xdp.core.desired import BackendId, BackendRecord, Structure
from lb_xdp.core.model import BackendKey, Mode, Protocol, ServiceKey
from lb_xdp.core.plan import NO_BACKEND, Observed, Plan, Slots
from lb_xdp.core.ring import RING_SLOTS
from lb_xdp.datapath import syscall
from lb_xdp.datapath.compile import Code, Parameters, compile_gateway, placeholder
from lb_xdp.datapath.endpoints import (
    Endpoint,
    EndpointTable,
    build_table,
    mac_of,
    read_table,
    structure_endpoints,
)
from lb_xdp.datapath.layout import layout
from lb_xdp.datapath.load import Program, load_program
from lb_xdp.datapath.maps import BpfMap, Values, generation_specs
from lb_xdp.errors import DatapathError, MapError

_PROGRAM = "program"


@dataclass(slots=True)
class Generation:
    """An open generation. ``rings`` gives each service's index in the ring map."""

    number: int
    maps: dict[str, BpfMap]
    program: Program
    rings: dict[ServiceKey, int]

    def close(self) -> None:
        """Close all descriptors; what is pinned or attached lives on."""
        _close(self.maps)
        os.close(self.program.fd)

    def pin(self, folder: Path) -> None:
        """Pin the maps first and the program last: a folder with a program is complete."""
        folder.mkdir(mode=0o700)
        for name, bpf_map in self.maps.items():
            bpf_map.pin(folder / name)
        try:
            syscall.pin(self.program.fd, str(folder / _PROGRAM))
        except OSError as error:
            raise DatapathError(f"{folder}: cannot be pinned: {error.strerror}") from error

    def write_record(self, identity: BackendId, index: int, record: BackendRecord) -> None:
        """Write what the program needs to reach a backend."""
        self.maps["backends"].write(index, _encode_record(identity, record))

    def write_ring(self, service: ServiceKey, slots: Slots) -> None:
        """Write a whole ring at once. A reader may see old and new slots mixed: all are valid."""
        self.maps["rings"].write(self.rings[service], (np.append(slots, np.uint32(NO_BACKEND)),))

    def observe(self) -> Observed:
        """Read everything back, as the controller's picture of the kernel."""
        endpoints = _read_endpoints(self.maps["endpoints"])
        modes = _read_modes(endpoints)
        records, indices = _read_records(self.maps["backends"])
        local = frozenset(
            IPv4Address(e.address)
            for e in endpoints
            if e.kind == _constant("LB_KIND_ADDRESS") and e.index & _constant("LB_ADDRESS_LOCAL")
        )
        build = int(_element(self.maps["endpoints"], 0)["head"]["build"][0])
        macs = frozenset(mac_of(e) for e in endpoints if e.is_mac)
        structure = Structure(build, modes, frozenset(indices), local, macs)
        rings = {service: self._read_ring(index) for service, index in self.rings.items()}
        return Observed(self.number, structure, indices, records, rings)

    def _read_ring(self, index: int) -> Slots:
        slots: Slots = _element(self.maps["rings"], index)["slot"][0][:RING_SLOTS]
        return slots


def _constant(name: str) -> int:
    return layout().constants[name]


def prepare_generation(plan: Plan) -> None:
    """Compile what ``build_generation`` will need: blocks, but touches nothing, in any thread."""
    _lay_out(plan)


def _lay_out(plan: Plan) -> tuple[dict[ServiceKey, int], EndpointTable, Code]:
    rings = {service: index for index, service in enumerate(sorted(plan.structure.modes))}
    table = build_table(structure_endpoints(plan.structure, plan.indices, rings))
    used = set(plan.structure.modes.values())
    return (
        rings,
        table,
        compile_gateway(Parameters(table.bucket_bits, Mode.NAT in used, Mode.DSR in used)),
    )


def build_generation(plan: Plan, persistent: Mapping[str, BpfMap]) -> Generation:
    """Create, fill and load a new generation; nothing runs it yet. Raises DatapathError."""
    rings, table, code = _lay_out(plan)
    maps: dict[str, BpfMap] = {}
    try:
        for spec in generation_specs(len(rings), 1 << table.bucket_bits):
            maps[spec.name] = BpfMap.create(spec)
        maps["endpoints"].write(0, _encode_table(maps["endpoints"], plan.structure, table))
        everything = (*maps.items(), *persistent.items())
        program = load_program(
            code.instructions, {placeholder(name): bpf_map.fd for name, bpf_map in everything}
        )
    except BaseException:
        _close(maps)
        raise
    generation = Generation(plan.generation, maps, program, rings)
    for identity, record in plan.records.items():
        generation.write_record(identity, plan.indices[identity], record)
    for service, slots in plan.rings.items():
        generation.write_ring(service, slots)
    return generation


def _encode_table(
    endpoints: BpfMap, structure: Structure, table: EndpointTable
) -> NDArray[np.void]:
    value: NDArray[np.void] = np.zeros(1, dtype=endpoints.spec.value)
    value["head"]["build"], value["head"]["factor"] = structure.build, table.factor
    value["bucket"]["entry"] = table.entries
    return value


def _close(maps: Mapping[str, BpfMap]) -> None:
    for bpf_map in maps.values():
        bpf_map.close()


def open_generation(folder: Path, number: int) -> Generation:
    """Reopen a pinned generation. Raises MapError for another geometry, FileNotFoundError."""
    program_fd = syscall.open_pin(str(folder / _PROGRAM))
    program = Program(program_fd, syscall.program_info(program_fd).id)
    maps: dict[str, BpfMap] = {}
    try:
        services, buckets = _geometry(folder)
        for spec in generation_specs(services, buckets):
            maps[spec.name] = BpfMap.reopen(spec, folder / spec.name)
        endpoints = _read_endpoints(maps["endpoints"])
    except BaseException:
        _close(maps)
        os.close(program_fd)
        raise
    rings = {_service_key(e): e.index for e in endpoints if e.kind in _service_kinds()}
    return Generation(number, maps, program, rings)


def _read_endpoints(endpoints: BpfMap) -> list[Endpoint]:
    return read_table(_element(endpoints, 0)["bucket"]["entry"][0])


def _element(bpf_map: BpfMap, index: int) -> Values:
    """Read an array's element, which is there unless the map is not what it claims to be."""
    value = bpf_map.read(index)
    if value is None:
        raise MapError(f"map {bpf_map.spec.name}[{index}] cannot be read")
    return value


def _geometry(folder: Path) -> tuple[int, int]:
    """Return the two sizes that differ from generation to generation: services and buckets."""
    infos = []
    for name in ("rings", "endpoints"):
        fd = syscall.open_pin(str(folder / name))
        infos.append(syscall.map_info(fd))
        os.close(fd)
    head, bucket = (layout().structs[name].itemsize for name in ("lb_table_head", "lb_bucket"))
    return infos[0].max_entries, max((infos[1].value_size - head) // bucket, 1)


def _service_kinds() -> dict[int, Mode]:
    return {
        _constant("LB_KIND_SERVICE_DSR"): Mode.DSR,
        _constant("LB_KIND_SERVICE_NAT"): Mode.NAT,
    }


def _protocol(number: int) -> Protocol:
    return next(protocol for protocol in Protocol if protocol.number == number)


def _service_key(endpoint: Endpoint) -> ServiceKey:
    return ServiceKey(IPv4Address(endpoint.address), endpoint.port, _protocol(endpoint.protocol))


def _read_modes(endpoints: list[Endpoint]) -> dict[ServiceKey, Mode]:
    kinds = _service_kinds()
    return {_service_key(e): kinds[e.kind] for e in endpoints if e.kind in kinds}


def _encode_record(identity: BackendId, record: BackendRecord) -> Values:
    flags = _constant("LB_BACKEND_UP") * record.up
    flags |= _constant("LB_BACKEND_SHARED") * record.shared
    value = np.zeros((), dtype=layout().structs["lb_backend"])
    value["address"], value["port"] = int(identity.backend.address), identity.backend.port
    value["vip"], value["vip_port"] = int(identity.service.vip), identity.service.port
    value["mac"], value["source_mac"] = list(record.mac), list(record.source_mac)
    value["ifindex"], value["mtu"] = record.ifindex, min(record.mtu, 0xFFFF)
    value["protocol"], value["flags"] = identity.service.protocol.number, flags
    return value


def _read_records(
    backends: BpfMap,
) -> tuple[dict[BackendId, BackendRecord], dict[BackendId, int]]:
    keys, values = backends.read_all()
    records, indices = {}, {}
    for index in np.flatnonzero(values["address"]).tolist():
        value = values[index]
        service = ServiceKey(
            IPv4Address(int(value["vip"])),
            int(value["vip_port"]),
            _protocol(int(value["protocol"])),
        )
        identity = BackendId(
            service, BackendKey(IPv4Address(int(value["address"])), int(value["port"]))
        )
        indices[identity] = int(keys[index])
        records[identity] = BackendRecord(
            int(value["ifindex"]),
            bytes(value["mac"].tolist()),
            bytes(value["source_mac"].tolist()),
            int(value["mtu"]),
            up=bool(value["flags"] & _constant("LB_BACKEND_UP")),
            shared=bool(value["flags"] & _constant("LB_BACKEND_SHARED")),
        )
    return records, indices
