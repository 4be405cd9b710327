"""The datapath of one gateway: reads what the kernel holds, and applies plans to it.

It decides nothing: ``core.plan`` says what to do. It can be cut off after any step: the next
``observe`` finds what is there, throws away what no interface runs, and the next plan goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Self

from lb_xdp.core.desired import BackendId, Structure, Traits
from lb_xdp.core.flow_list import FlowRecords
from lb_xdp.core.model import FlowTable, ServiceKey, XdpMode
from lb_xdp.core.plan import Observed, Plan
from lb_xdp.core.snapshot import ProgramStatus, ReasonCount
from lb_xdp.datapath import counters
from lb_xdp.datapath.attach import Link, create_links, open_link
from lb_xdp.datapath.blueprint import compile_ahead
from lb_xdp.datapath.bpffs import Pins, find_bpffs
from lb_xdp.datapath.clock import jiffies, jiffies_per_s
from lb_xdp.datapath.compile import way_bits
from lb_xdp.datapath.estate import Estate, find_estate
from lb_xdp.datapath.flows import Collected, collect
from lb_xdp.datapath.generation import Generation, open_generation
from lb_xdp.datapath.layout import layout
from lb_xdp.datapath.load import Program
from lb_xdp.datapath.maps import BpfMap, MapSpec, persistent_specs
from lb_xdp.datapath.persistent import open_maps
from lb_xdp.datapath.workshop import Workshop
from lb_xdp.errors import MapError

_log = logging.getLogger(__name__)

_OTHER_BUILD = 0  # no sources have it: whatever runs is built anew


class Datapath:
    """Open with ``open``; ``observe`` once, then ``apply`` plans. Closing leaves forwarding on."""

    def __init__(
        self, pins: Pins, mode: XdpMode, *, replace: bool, flow_entries: int = FlowTable().entries
    ) -> None:
        self._pins = pins
        self._flow_entries = flow_entries
        self._mode = mode
        self._replace = replace
        self._maps: dict[str, BpfMap] = {}
        self._workshop = Workshop(self._maps)
        self._links: dict[str, Link] = {}
        self._generation: Generation | None = None
        self._estate: Estate | None = None
        self._reserved = set[int]()

    @classmethod
    def open(
        cls,
        gateway: str,
        mode: XdpMode,
        *,
        replace: bool = False,
        bpffs: Path | None = None,
        flow_entries: int = FlowTable().entries,
    ) -> Self:
        """Open the pins of a gateway, or make the persistent ones.

        ``flow_entries`` is the size of the flow table. What a version of another layout left is
        gone on with as far as it means the same here. Raises MapError where something would be
        lost, unless ``replace`` says to take over all the same.
        """
        pins = Pins(bpffs or find_bpffs(), gateway, layout().version)
        datapath = cls(pins, mode, replace=replace, flow_entries=flow_entries)
        try:
            datapath._open(persistent_specs(flow_entries, way_bits()))
        except BaseException:
            datapath.close()
            raise
        return datapath

    def _open(self, specs: Sequence[MapSpec]) -> None:
        pins = self._pins
        running = self._open_links().values() if pins.other_layouts() else ()
        self._estate = estate = find_estate(pins, set(running))
        if estate is not None and estate.lost and not self._replace:
            raise MapError(estate.refusal(pins))
        open_maps(self._maps, pins, specs, estate, replace=self._replace)
        if estate is not None:
            lost = ", ".join(estate.lost) or "nothing: flow records and counters go on"
            _log.info("taking over from %s; lost: %s", estate.folder, lost)

    def close(self) -> None:
        """Close all descriptors. Pins stay, so forwarding goes on; those of no use yet go."""
        if self._estate is not None and self._maps:
            self._pins.remove_layout(self._pins.versioned)
        self._workshop.close()
        for bpf_map in self._maps.values():
            bpf_map.close()
        for link in self._links.values():
            link.close()
        self._close_generation()
        self._maps.clear()
        self._links = {}

    def observe(self) -> Observed:
        """Read what the kernel holds, and clear away what no interface can run any more.

        May be repeated: after a failed ``apply`` it tells how far that came.
        """
        self._close_generation()
        running = self._open_links()
        self._generation = self._open_generation(set(running.values()))
        if self._generation is None:
            return Observed(
                generation=max(self._pins.generations(), default=0),
                attached=self._attached(),
                outdated=frozenset(running),
            )
        current = self._generation.program.id
        outdated = frozenset(
            name
            for name, program in running.items()
            if program != current or not self._mode_fits(self._links[name])
        )
        found = replace(
            self._generation.observe(),
            attached=self._attached(),
            outdated=outdated,
            reserved=frozenset(self._reserved),
        )
        if self._estate is None:
            if not outdated:
                self._remove_other_layouts()  # left by an upgrade that was cut off at its end
            return found
        # Of another layout: what is read is the past, and the goal has a generation of its own.
        structure = found.structure and replace(found.structure, build=_OTHER_BUILD)
        return replace(found, structure=structure, outdated=frozenset(running))

    def _mode_fits(self, link: Link) -> bool:
        return self._mode is XdpMode.AUTO or link.mode == self._mode.value

    def _attached(self) -> dict[str, int]:
        return {name: link.info.ifindex for name, link in self._links.items()}

    def _open_links(self) -> dict[str, int]:
        """Open the pinned links that still have their interface; return their programs' ids."""
        for link in self._links.values():
            link.close()
        names = self._pins.linked_interfaces()
        opened = [open_link(name, self._pins.link(name)) for name in names]
        self._links = {link.interface: link for link in opened if link is not None}
        self._follow_interfaces()
        return {name: link.info.program_id for name, link in self._links.items()}

    def _follow_interfaces(self) -> None:
        """Forget links whose interface was removed, and find those that were renamed."""
        links, self._links = self._links, {}
        for link in links.values():
            if link.info.ifindex == 0:
                _log.info("interface %s was removed: its link is void", link.interface)
                link.remove()
                continue
            if not link.mode or not link.in_place():
                link.find(self._pins.link)
            self._links[link.interface] = link

    def _open_generation(self, running: set[int]) -> Generation | None:
        """Open the newest generation that some interface runs; without any, the newest one."""
        if self._estate is not None:
            return self._open_inherited(self._estate)
        found: list[Generation] = []
        for number in self._pins.generations():
            try:
                folder = self._pins.generation(number)
                found.append(open_generation(folder, number, self._maps["limits"]))
            except FileNotFoundError:
                self._pins.remove_generation(number)  # cut off while it was being pinned
            except MapError:
                if not self._replace:
                    raise
        used = [generation for generation in found if generation.program.id in running]
        chosen = used[-1] if used else found[-1] if found else None
        self._reserved = set[int]()
        for generation in found:
            if generation is not chosen:
                if generation.program.id in running:
                    self._reserved |= generation.indices()
                generation.close()
            if generation is not chosen and generation.program.id not in running:
                self._pins.remove_generation(generation.number)
        return chosen

    def _open_inherited(self, estate: Estate) -> Generation | None:
        """Open the generation of another layout that forwards; None where it cannot be read."""
        number = estate.generation
        if number is None:
            return None
        return open_generation(estate.folder / f"gen-{number}", number, self._maps["limits"])

    def _close_generation(self) -> None:
        if self._generation is not None:
            self._generation.close()
            self._generation = None

    @staticmethod
    def compile_ahead(structure: Structure) -> None:
        """Do the slowest part of ``prepare`` before there is a plan. May run in any thread.

        Raises CompileError, MapError.
        """
        compile_ahead(structure)

    def prepare(self, plan: Plan) -> None:
        """Do the slow part of a plan ahead: compiler, verifier, trial. May run in any thread."""
        if plan.build:
            self._workshop.prepare(plan)

    def discard(self) -> None:
        """Throw away what was prepared and is not wanted any more."""
        self._workshop.close()

    def apply(self, plan: Plan, observed: Observed) -> Observed:
        """Do what the plan says and return the new picture. Raises DatapathError.

        Whatever may be refused comes first, and is undone if a later one is: no interface then runs
        anything else than before. Only if a map cannot be written something may have changed.
        """
        self._follow_interfaces()
        for ifindex in plan.interfaces.values():
            self._maps["devices"].write(ifindex, ifindex)
        if plan.build:
            self._build_and_swap(plan)
        elif self._generation is not None:
            with ExitStack() as undo:
                self._attach(plan, self._generation.program, undo)
                undo.pop_all()
            self._write(plan, self._generation)
        for interface in plan.detach:
            if interface in self._links:
                # First: what is sent by an interface without XDP, its driver may drop in silence.
                self._maps["devices"].delete(self._links[interface].info.ifindex)
                self._links.pop(interface).remove()
        self._remove_old_generations(plan.generation)
        return replace(
            observed,
            generation=plan.generation,
            structure=plan.structure,
            indices=plan.indices,
            records={**({} if plan.build else observed.records), **plan.records},
            rings={**({} if plan.build else observed.rings), **plan.rings},
            attached=self._attached(),
            outdated=frozenset(),
            reserved=frozenset(),
        )

    @staticmethod
    def _write(plan: Plan, generation: Generation) -> None:
        """Change records and rings in place, so that a ring never names what cannot be sent to."""
        for reachable in (True, False):
            for identity, record in plan.records.items():
                if record.reachable is reachable:
                    generation.write_record(identity, plan.indices[identity], record)
            if reachable:
                for service, image in plan.rings.items():
                    generation.write_ring(service, image)

    def _build_and_swap(self, plan: Plan) -> None:
        counters.reset(self._maps, plan.fresh)
        counters.watch(self._maps["watched"], plan.structure, plan.indices)
        with ExitStack() as undo:
            built = self._build(plan, undo)
            self._attach(plan, built.program, undo)
            self._run_everywhere(built.program, undo)
            undo.pop_all()
        self._close_generation()
        self._generation, self._estate = built, None

    def _build(self, plan: Plan, undo: ExitStack) -> Generation:
        """Make a generation complete, tried and pinned; nothing runs it yet."""
        self._pins.remove_generation(plan.generation)
        built = self._workshop.take(plan)
        undo.callback(built.close)
        undo.callback(self._pins.remove_generation, plan.generation)
        built.pin(self._pins.generation(plan.generation))
        return built

    def _run_everywhere(self, program: Program, undo: ExitStack) -> None:
        """Put a program under every link, one atomic replacement each."""
        for link in self._links.values():
            before = link.info.program_id
            link.run(program.fd)
            undo.callback(link.go_back, before, self._held)

    @property
    def _held(self) -> Program | None:
        """The program of the generation that is open."""
        return self._generation.program if self._generation else None

    def _attach(self, plan: Plan, program: Program, undo: ExitStack) -> None:
        """Let a program run on the interfaces that need a link of their own, or another's place."""
        missing = {}
        for interface, ifindex in plan.attach.items():
            link = self._links.get(interface)
            if link is None:
                missing[interface] = ifindex
            elif self._mode_fits(link):
                undo.callback(link.go_back, link.info.program_id, self._held)
                link.run(program.fd)
            else:
                before = link.info.program_id
                changed = link.change_mode(program.fd, self._mode)
                undo.callback(changed.go_back, before, self._held)
                self._links[interface] = changed
        for made in create_links(missing, program.fd, self._mode_for_new(), self._pins.link, undo,
                                 replace=self._replace):  # fmt: skip
            self._links[made.interface] = made
            undo.callback(self._links.pop, made.interface, None)

    def _mode_for_new(self) -> XdpMode:
        """Return the mode that goes with the interfaces attached already.

        A native program cannot redirect to an interface that only has generic XDP, so all have one.
        """
        modes = {link.mode for link in self._links.values() if link.mode}
        return XdpMode(modes.pop()) if self._mode is XdpMode.AUTO and modes else self._mode

    def _remove_old_generations(self, keep: int) -> None:
        for number in self._pins.generations():
            if number != keep:
                self._pins.remove_generation(number)
        self._remove_other_layouts()

    def _remove_other_layouts(self) -> None:
        for folder in self._pins.other_layouts():
            _log.info("removing the pins of another layout at %s", folder)
            self._pins.remove_layout(folder)

    def remove(self) -> list[str]:
        """Detach every program and remove every pin: forwarding stops. Returns what was removed."""
        done = []
        for interface in self._pins.linked_interfaces():
            link = self._links.pop(interface, None) or open_link(
                interface, self._pins.link(interface)
            )
            if link is not None:
                link.remove()
                done.append(f"the program from {interface}")
        self.close()
        self._pins.remove()
        return [*done, f"the pins under {self._pins.root}"]

    @property
    def layout_version(self) -> int:
        """Return the version of the map layout."""
        return layout().version

    def programs(self) -> tuple[ProgramStatus, ...]:
        """Return which program runs where, as the kernel's links say now."""
        infos = [(name, link.mode, link.info) for name, link in sorted(self._links.items())]
        return tuple(
            ProgramStatus(name, mode, info.program_id) for name, mode, info in infos if info.ifindex
        )

    def _map(self, name: str) -> BpfMap:
        if name not in self._maps:
            raise MapError(f"map {name} is closed: the gateway was detached")
        return self._maps[name]

    def backend_counts(
        self, indices: Mapping[BackendId, int]
    ) -> dict[BackendId, counters.BackendCount]:
        """Return the counters of every backend."""
        return counters.backend_counts(
            self._map("counts"), self._map("active"), self._map("limits"), indices
        )

    def watch_counts(
        self, indices: Mapping[BackendId, int]
    ) -> dict[BackendId, counters.WatchCount]:
        """Return what was seen of the handshakes of the backends that are watched."""
        return counters.watch_counts(self._map("watched"), indices)

    def reason_counts(self) -> tuple[ReasonCount, ...]:
        """Return how many packets ended with each reason."""
        return counters.reason_counts(self._map("reasons"))

    def collect(
        self,
        times: FlowTable,
        services: Mapping[ServiceKey, Traits],
        affinity_s: Mapping[ServiceKey, int],
    ) -> Collected:
        """Remove flow records that are over, and tell what is left; may run in any thread."""
        if self._generation is None:
            return Collected(0, {}, {}, 0)
        return collect(
            self._maps,
            self._generation.maps["backends"],
            times=times,
            services=services,
            affinity_s=affinity_s,
        )

    def flow_records(self) -> FlowRecords:
        """Return a copy of the flow table; may run in any thread. Blocks as ``collect`` does."""
        keys, values = self._map("flows").read_all()
        return FlowRecords(keys, values, jiffies(), jiffies_per_s())

    def flow_counts(self) -> tuple[int, int, int, int]:
        """Return how many records were inserted and closed, and how many flows found no room.

        The fourth is how many flows were placed anew because their backend was gone or down.
        """
        return counters.flow_counts(self._map("flow_counts"))

    @property
    def flow_capacity(self) -> int:
        """Return how many flows can be recorded."""
        return self._flow_entries


def remove_pins(gateway: str, bpffs: Path | None = None) -> list[str]:
    """Detach a gateway whose daemon does not run, whatever layout its pins have."""
    pins = Pins(bpffs or find_bpffs(), gateway, layout().version)
    return Datapath(pins, XdpMode.AUTO, replace=False).remove()
