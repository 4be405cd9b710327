"""The program that a gateway runs, timed without disturbing it: ``lb-xdp bench``.

The program is found through the gateway's pins and loaded a second time: the same instructions,
onto the same endpoints, backends and rings, but onto twins of every map that it writes. So
counters, flows and turns of the live gateway stay as they are, and forwarding goes on. Whether they
are the same instructions is for the kernel to say: both programs must have one tag.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

from lb_xdp.core.desired import Schedule, Structure
from lb_xdp.core.model import ANY_PORT, Mode, Protocol, ServiceKey
from lb_xdp.core.plan import Observed
from lb_xdp.datapath import syscall
from lb_xdp.datapath.bench import BASELINES, REPEAT, Case, Figure, Harness, measure
from lb_xdp.datapath.bench_frames import Kind, to_service
from lb_xdp.datapath.bpffs import Pins, find_bpffs, pinned_gateways
from lb_xdp.datapath.clock import jiffies_per_s
from lb_xdp.datapath.compile import (
    Code,
    Parameters,
    build_id,
    compile_gateway,
    features,
    way_bits,
)
from lb_xdp.datapath.generation import Generation, load_programs, open_generation
from lb_xdp.datapath.layout import layout
from lb_xdp.datapath.maps import BpfMap, persistent_specs
from lb_xdp.errors import DatapathError

_READ_ONLY = {"endpoints", "backends", "snats", "limits"}
_ANY = 443  # a port for a service that takes any
_ACTIONS = {0: "aborted", 1: "drop", 2: "pass", 3: "tx", 4: "redirect"}
_BITS = ("filter_bits", "bucket_bits", "bucket6_bits")
_KINDS = {Protocol.TCP: (Kind.ESTABLISHED, Kind.SYN), Protocol.UDP: (Kind.UDP,)}


_Origin = tuple[ServiceKey, Mode, Kind]


@dataclass(frozen=True, slots=True)
class Measured:
    """What packets of one kind to one service cost, and the XDP action that they get."""

    service: ServiceKey
    mode: Mode
    kind: Kind
    action: str
    figure: Figure


@dataclass(frozen=True, slots=True)
class Report:
    """What was measured on a gateway. ``baselines`` are of the same rounds."""

    gateway: str
    program_id: int
    flows: int
    baselines: Mapping[str, Figure]
    services: tuple[Measured, ...]


def only_gateway() -> str:
    """Return the name of the gateway that has pins. Raises DatapathError for none and several."""
    names = pinned_gateways(find_bpffs())
    if len(names) == 1:
        return names[0]
    if names:
        raise DatapathError(f"gateways {', '.join(names)} run here: say which by --name, in front")
    raise DatapathError("no gateway runs here: start one with lb-xdp run -c FILE")


def bench_gateway(name: str, *, flows: int, rounds: int, repeat: int = REPEAT) -> Report:
    """Time the program that a gateway runs, on ``flows`` flows to each of its services.

    Raises DatapathError where no interface runs one, or where it cannot be loaded again.
    """
    with ExitStack() as closing:
        generation, ifindex = _running(name, closing)
        observed = generation.observe()
        maps = _twins(generation, observed, closing)
        program_fd = _load_again(generation, observed, maps, closing)
        harness = closing.enter_context(Harness())
        cases = list(_cases(_structure(observed), harness, program_fd, ifindex, flows))
        actions = {case.name: harness.action(case) for case, _ in cases}
        figures = measure(harness, [case for case, _ in cases], rounds=rounds, repeat=repeat)
    found = (
        Measured(key, mode, kind, _ACTIONS[actions[case.name]], figures[case.name])
        for case, origin in cases
        if origin is not None
        for key, mode, kind in [origin]
    )
    bare = {name: figure for name, figure in figures.items() if name in BASELINES}
    return Report(name, generation.program.id, flows, bare, tuple(found))


def _running(name: str, closing: ExitStack) -> tuple[Generation, int]:
    """Open the generation that interfaces run; return it with the index of the first of them."""
    pins = Pins(find_bpffs(), name, layout().version)
    running: dict[int, int] = {}
    for interface in pins.linked_interfaces():
        fd = syscall.open_pin(str(pins.link(interface)))
        closing.callback(os.close, fd)
        info = syscall.link_info(fd)
        if info.ifindex:
            running.setdefault(info.program_id, info.ifindex)
    if not running:
        raise DatapathError(f"gateway {name}: no interface runs its program: is it started?")
    limits_spec = next(s for s in persistent_specs(1, way_bits()) if s.name == "limits")
    limits = closing.enter_context(BpfMap.reopen(limits_spec, pins.maps / "limits"))
    for number in reversed(pins.generations()):
        generation = open_generation(pins.generation(number), number, limits)
        closing.callback(generation.close)
        if generation.program.id in running:
            return generation, running[generation.program.id]
    raise DatapathError(f"gateway {name}: its interfaces run a program that is not pinned")


def _structure(observed: Observed) -> Structure:
    if observed.structure is None:
        raise DatapathError("the generation's tables are empty: a bug, please report")
    return observed.structure


def _twins(generation: Generation, observed: Observed, closing: ExitStack) -> dict[str, BpfMap]:
    """Return the maps for a second program: read-only ones shared, all others new."""
    structure = _structure(observed)
    turns = any(traits.schedule is Schedule.TURN for traits in structure.services.values())
    specs = {spec.name: spec for spec in persistent_specs(structure.flow_entries, way_bits())}
    specs |= {name: held.spec for name, held in generation.maps.items()}
    shared = {**generation.maps, "limits": generation.limits}
    maps: dict[str, BpfMap] = {}
    for name, spec in specs.items():
        if name in shared and (name in _READ_ONLY or (name == "rings" and not turns)):
            maps[name] = shared[name]
        else:
            maps[name] = closing.enter_context(BpfMap.create(spec))
    for index in {record.ifindex for record in observed.records.values()} - {0}:
        maps["devices"].write(index, index)
    if turns:
        twin = Generation(0, maps, generation.program, generation.rings, generation.limits)
        for service, image in observed.rings.items():
            twin.write_ring(service, image)
    return maps


def _load_again(
    generation: Generation, observed: Observed, maps: Mapping[str, BpfMap], closing: ExitStack
) -> int:
    """Load the same instructions onto other maps. Raises DatapathError if they are not the same."""
    program = load_programs(_code(generation, _structure(observed)), maps)
    closing.callback(os.close, program.fd)
    tags = {syscall.program_info(fd).tag for fd in (program.fd, generation.program.fd)}
    if len(tags) != 1:
        raise DatapathError(
            f"program {generation.program.id} was made from other sources, or by another compiler, "
            "than this lb-xdp has: restart the daemon, which replaces it without a gap"
        )
    return program.fd


def _code(generation: Generation, structure: Structure) -> Code:
    head = generation.maps["endpoints"].read(0)
    if head is None or structure.build != build_id():
        raise DatapathError(
            f"program {generation.program.id} was made from other sources than this lb-xdp has: "
            "restart the daemon, which replaces it without a gap"
        )
    bits = {name: int(head["head"][0][name]) for name in _BITS}
    return compile_gateway(Parameters(features(structure), hz=jiffies_per_s(), **bits))


def _cases(
    structure: Structure, harness: Harness, program_fd: int, ifindex: int, flows: int
) -> Iterator[tuple[Case, _Origin | None]]:
    """Yield the baselines, and what each service gets."""
    mac = min(structure.macs)
    first = min(structure.services)
    plain = to_service(Kind.ESTABLISHED, first.vip, first.port or _ANY, mac, flows)
    for name in BASELINES:
        yield Case(name, harness.baseline(name), plain, ifindex), None
    for key, traits in sorted(structure.services.items()):
        port = _ANY if key.port == ANY_PORT else key.port
        for kind in _KINDS[key.protocol]:
            traffic = to_service(kind, key.vip, port, mac, flows)
            case = Case(f"{key} {kind.value}", program_fd, traffic, ifindex)
            yield case, (key, traits.mode, kind)
