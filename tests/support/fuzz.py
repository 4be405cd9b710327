"""A fuzzer for the whole program: random and mutated frames through each compiled variant.

``python -m tests.support.fuzz`` (scripts/fuzz) runs it; tests/bpf/test_fuzz.py runs a slice. Frames
come from ``fuzz_frames`` and are spoilt here; ``wellformed`` judges each. A packet has exactly one
reason: the counters are read after each. The kernel's test run takes no frame below 14 octets.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import islice
from random import Random
from typing import Self

import click

from lb_xdp.core.desired import BackendId, Desired
from lb_xdp.core.goals import desire
from lb_xdp.core.model import (
    GUE_PORT,
    Config,
    Gateway,
    TunnelSources,
    XdpMode,
)
from lb_xdp.core.plan import Observed, Plan, make_plan
from lb_xdp.core.reference import Found, Model, describe, difference
from lb_xdp.core.rings import Rings
from lb_xdp.core.topology import Topology
from lb_xdp.datapath import counters
from lb_xdp.datapath.compile import build_id, way_bits
from lb_xdp.datapath.generation import build_generation, draw
from lb_xdp.datapath.layout import layout
from lb_xdp.datapath.maps import BpfMap, MapSpec, persistent_specs
from lb_xdp.datapath.syscall import MapType
from lb_xdp.errors import DatapathError
from tests.support import program, sandbox
from tests.support.captures import captured_for
from tests.support.fuzz_frames import Frames, Target
from tests.support.fuzz_spoil import MAX_FRAME_BYTES, Spoiler, truncations
from tests.support.fuzz_variants import Variant, variants
from tests.support.wellformed import World, judge

_OUT_BYTES = 16_384
_MMAPABLE = 1 << 10
_FORETELL_EVERY = 10
_SYSCALL_NUMBER = {"x86_64": 321, "aarch64": 280}[os.uname().machine]
_libc = ctypes.CDLL(None, use_errno=True)


def planned(wire: program.Wire, variant: Variant) -> tuple[Config, Topology, Plan]:
    """Return a variant as the controller would plan it on the wire of the packet tests."""
    found = wire.topology(9)
    topology = replace(
        found,
        interfaces={
            name: replace(interface, mtu=variant.mtu)
            for name, interface in found.interfaces.items()
        },
    )
    interfaces = (program.OUTER, program.INNER)
    gateway = Gateway("fuzz", interfaces, XdpMode.AUTO, "", None, snat_addresses=program.SNATS)
    config = Config(gateway, variant.services)
    rings = Rings()

    def goal(*dead: int) -> Desired:
        gone = {at(n) for n in dead for at in (program.backend_address, program.backend_address6)}
        live = [
            BackendId(service.key, backend.key)
            for service, backend in config.backends()
            if backend.address not in gone
        ]
        return desire(config, topology, live, rings.ring_of, build=build_id(), held={})

    before = make_plan(Observed(), goal(*variant.down), now_ns=time.monotonic_ns())
    observed = Observed(indices=before.indices, rings=before.rings, structure=None)
    desired = goal(*variant.down, *variant.fallen)
    return config, topology, make_plan(observed, desired, now_ns=time.monotonic_ns())


def _specs() -> Iterator[MapSpec]:
    """Yield the maps, with the reasons' in memory that we can read without a system call."""
    for spec in persistent_specs(program.FLOW_ENTRIES, way_bits()):
        if spec.name == "reasons":
            yield replace(spec, kind=MapType.ARRAY, flags=_MMAPABLE)
        else:
            yield spec


class Rig:
    """A variant's program, ready to be run a hundred thousand times a second."""

    def __init__(self, wire: program.Wire, variant: Variant) -> None:
        self.reasons = [reason.name for reason in layout().reasons]
        self.config, self.topology, self.plan = planned(wire, variant)
        with ExitStack() as undo:
            maps = {spec.name: undo.enter_context(BpfMap.create(spec)) for spec in _specs()}
            for interface in self.topology.interfaces.values():
                maps["devices"].write(interface.index, interface.index)
            counters.watch(maps["watched"], self.plan.structure, self.plan.indices)
            generation = build_generation(self.plan, maps)
            undo.callback(generation.close)
            self.generation = generation
            self._fd = generation.program.fd
            octets = 8 * len(self.reasons)
            self._counted = mmap.mmap(maps["reasons"].fd, mmap.PAGESIZE)
            undo.callback(self._counted.close)
            self._zeros = bytes(octets)
            self._undo = undo.pop_all()
        self._ones = {
            bytes(8 * at) + struct.pack("=Q", 1) + bytes(octets - 8 * at - 8): name
            for at, name in enumerate(self.reasons)
        }
        plan = self.plan
        self.ingress = self.topology.interfaces[program.OUTER].index
        self.model = Model(
            plan.structure, plan.indices, plan.records, plan.rings, set(plan.interfaces.values())
        )
        self._prepare_call()

    def _prepare_call(self) -> None:
        self._in = ctypes.create_string_buffer(MAX_FRAME_BYTES)
        self._out = ctypes.create_string_buffer(_OUT_BYTES)
        self._context = ctypes.create_string_buffer(
            struct.pack("=6I", 0, 0, 0, self.ingress, 0, 0), 24
        )
        self._attributes = ctypes.create_string_buffer(
            struct.pack(
                "=IIIIQQIIIIQQIII4x",
                self._fd,
                0,
                0,
                _OUT_BYTES,
                ctypes.addressof(self._in),
                ctypes.addressof(self._out),
                1,
                0,
                24,
                0,
                ctypes.addressof(self._context),
                0,
                0,
                0,
                0,
            ),
            80,
        )
        self._call = _libc.syscall

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def run(self, frame: bytes) -> tuple[int, str, bytes]:
        """Return the action, the reason that was counted (all of them, if not one) and the frame.

        Raises OSError where the kernel refuses to run.
        """
        octets = len(frame)
        ctypes.memmove(self._in, frame, octets)
        struct.pack_into("=I", self._context, 4, octets)
        struct.pack_into("=II", self._attributes, 8, octets, _OUT_BYTES)
        self._counted[: len(self._zeros)] = self._zeros
        if self._call(_SYSCALL_NUMBER, 10, self._attributes, 80) < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), f"test run of {octets} octets")
        action, _, size = struct.unpack_from("=III", self._attributes, 4)
        counted = self._counted[: len(self._zeros)]
        reason = self._ones.get(counted) or self._all(counted)
        return action, reason, ctypes.string_at(self._out, size)

    def _all(self, counted: bytes) -> str:
        numbers = struct.unpack(f"={len(self.reasons)}Q", counted)
        found = [f"{n} {name}" for n, name in zip(numbers, self.reasons, strict=True) if n]
        return f"counted: {', '.join(found) or 'nothing'}"

    def world(self) -> World:
        """Return what the judge must know."""
        services = self.config.services
        sources = TunnelSources()
        return World(
            modes={service.vip.packed: service.mode.value for service in services},
            verdicts={reason.name: reason.verdict.value for reason in layout().reasons},
            backends=frozenset(b.address.packed for _, b in self.config.backends()),
            snats=frozenset(address.packed for address in program.SNATS),
            macs=frozenset(record.mac for record in self.plan.records.values()),
            tunnels=(
                sources.ipv4.network_address.packed[:2],
                sources.ipv6.network_address.packed[:8],
            ),
            gue_port=GUE_PORT,
        )

    def frames(self, random: Random) -> list[bytes]:
        """Return the frames to begin with."""
        sources = TunnelSources()
        targets = [
            Target(
                service.vip,
                service.port,
                service.protocol.number,
                service.mode.value,
                tuple((b.address, b.port) for b in service.pool.backends),
            )
            for service in self.config.services
        ]
        gateway = bytes.fromhex(program.GATEWAY_MAC.replace(":", ""))
        made = Frames(
            targets,
            clients=(program.CLIENT, program.CLIENT6),
            snats=program.SNATS,
            tunnel_ends=(sources.ipv4.network_address + 7, sources.ipv6.network_address + 7),
            gateway=gateway,
            random=random,
        )
        return [*made.all(), *captured_for(targets, gateway)]


def compile_ahead(wire: program.Wire, wanted: Iterable[Variant]) -> None:
    """Compile variants side by side into the cache that LB_XDP_COMPILE_CACHE names."""
    plans = [planned(wire, variant)[2] for variant in wanted]
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        list(threads.map(draw, plans))


@dataclass(slots=True)
class Tally:
    """What a run came to."""

    variant: str
    packets: int = 0
    foretold: int = 0
    seconds: float = 0.0
    reasons: Counter[str] = field(default_factory=Counter)
    complaints: list[str] = field(default_factory=list)


def fuzz(
    wire: program.Wire, variant: Variant, packets: int, seed: int, most_complaints: int = 5
) -> Tally:
    """Run frames through a variant: all good ones, then truncations and spoilt ones."""
    random = Random(f"{seed}:{variant.name}")
    tally = Tally(variant.name)
    try:
        rig = Rig(wire, variant)
    except DatapathError as error:
        tally.complaints.append(f"{variant.name}: {error}")
        return tally
    with rig:
        world, good = rig.world(), rig.frames(random)
        spoiler = Spoiler(good, random)
        started = time.perf_counter()
        for frame in _stream(good, spoiler, random, packets):
            foretell = tally.packets < len(good) or tally.packets % _FORETELL_EVERY == 0
            complaint = _one(rig, world, frame, tally, spoiler, foretell=foretell)
            if complaint:
                head = f"{variant.name}, seed {seed}, packet {tally.packets}"
                tally.complaints.append(f"{head}: {complaint}\n")
                if len(tally.complaints) >= most_complaints:
                    break
        tally.seconds = time.perf_counter() - started
    return tally


def _stream(
    good: Sequence[bytes], spoiler: Spoiler, random: Random, packets: int
) -> Iterator[bytes]:
    """Yield as many frames as asked for, truncations a third of them at most."""
    cut = list(truncations(good))
    random.shuffle(cut)
    yield from good[:packets]
    left = max(packets - len(good), 0)
    yield from cut[: left // 3]
    left -= min(len(cut), left // 3)
    yield from islice(spoiler, left)


def _one(
    rig: Rig, world: World, frame: bytes, tally: Tally, spoiler: Spoiler, *, foretell: bool
) -> str:
    """Run one frame, and let the judge, and if asked the model, have their say."""
    expected = rig.model.journey(frame, rig.ingress) if foretell else None
    action, reason, out = rig.run(frame)
    tally.packets += 1
    tally.reasons[reason] += 1
    spoiler.hear(reason, out)
    if reason not in world.verdicts:
        complaint = f"{reason}, action {action}"
    else:
        complaint = judge(world, frame, reason, action, out)
        if not complaint and expected is not None:
            tally.foretold += not expected.unknown
            found = Found(program.ACTIONS[action], reason, out)
            complaint = difference(frame, rig.ingress, expected, found) or ""
    if not complaint:
        return ""
    return (
        f"{complaint} ({reason})\n  in:  {describe(frame)}\n  out: {describe(out)}\n"
        f"  in:  {frame.hex()}\n  out: {out.hex()}"
    )


@click.command()
@click.option("--packets", default=1_000_000, show_default=True, help="For each variant.")
@click.option("--seed", type=int, help="Of an earlier run; a new one each time if not given.")
@click.option("--variant", "wanted", multiple=True, help="Only this one; may be repeated.")
def main(packets: int, seed: int | None, wanted: tuple[str, ...]) -> None:
    """Run random and mutated packets through each compiled variant of the program."""
    sandbox.enter()
    seed = Random().randrange(1 << 32) if seed is None else seed
    click.echo(f"seed {seed}")
    wire = program.Wire()
    chosen = [variant for variant in variants() if not wanted or variant.name in wanted]
    os.environ["LB_XDP_COMPILE_CACHE"] = "/run/fuzz-compiled"
    compile_ahead(wire, chosen)
    failed = False
    for variant in chosen:
        tally = fuzz(wire, variant, packets, seed)
        rate = tally.packets / max(tally.seconds, 1e-9)
        click.echo(
            f"{tally.variant}: {tally.packets} packets, {rate:,.0f}/s, {tally.foretold} foretold"
        )
        click.echo("  " + ", ".join(f"{name} {n}" for name, n in tally.reasons.most_common()))
        for complaint in tally.complaints:
            failed = True
            click.echo(complaint)
    sys.exit(failed)


if __name__ == "__main__":
    main()
