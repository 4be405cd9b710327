"""The datapath of one gateway: reads what the kernel holds, and applies plans to it.

It decides nothing: ``core.plan`` says what to do. It can be cut off after any step: the next
``observe`` finds what is there, throws away what no interface runs, and the next plan goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Self

from lb_xdp.core.desired import BackendId
from lb_xdp.core.model import XdpMode
from lb_xdp.core.plan import Observed, Plan
from lb_xdp.core.snapshot import ProgramStatus, ReasonCount
from lb_xdp.datapath import counters
from lb_xdp.datapath.attach import Link, attached, create_link, open_link
from lb_xdp.datapath.bpffs import Pins, find_bpffs
from lb_xdp.datapath.generation import (
    Generation,
    build_generation,
    open_generation,
    prepare_generation,
)
from lb_xdp.datapath.layout import layout
from lb_xdp.datapath.maps import NAT_FLOWS, BpfMap, persistent_specs
from lb_xdp.errors import AttachError, MapError

_log = logging.getLogger(__name__)


class Datapath:
    """Open with ``open``; ``observe`` once, then ``apply`` plans. Closing leaves forwarding on."""

    def __init__(self, pins: Pins, mode: XdpMode, *, replace: bool) -> None:
        self._pins = pins
        self._mode = mode
        self._replace = replace
        self._maps: dict[str, BpfMap] = {}
        self._links: dict[str, Link] = {}
        self._generation: Generation | None = None

    @classmethod
    def open(
        cls, gateway: str, mode: XdpMode, *, replace: bool = False, bpffs: Path | None = None
    ) -> Self:
        """Open the pins of a gateway, or make the persistent ones.

        Raises MapError for pins of another layout unless ``replace`` says to take over.
        """
        pins = Pins(bpffs or find_bpffs(), gateway, layout().version)
        if pins.other_layouts() and not replace:
            raise MapError(
                f"{pins.other_layouts()[0]}: pins of another layout than v{layout().version}: made "
                "by another version of lb_xdp. Forwarding goes on with that version. `lb-xdp run "
                "--replace` takes over without a gap and starts the counters at 0; "
                f"`lb-xdp --name {gateway} detach` stops it and removes them"
            )
        datapath = cls(pins, mode, replace=replace)
        pins.prepare()
        try:
            for spec in persistent_specs():
                datapath._maps[spec.name] = datapath._reopen_or_create(spec.name)
        except BaseException:
            datapath.close()
            raise
        return datapath

    def _reopen_or_create(self, name: str) -> BpfMap:
        spec = next(spec for spec in persistent_specs() if spec.name == name)
        path = self._pins.maps / name
        try:
            return BpfMap.reopen(spec, path)
        except FileNotFoundError:
            bpf_map = BpfMap.create(spec)
        except MapError:
            if not self._replace:
                raise
            path.unlink()
            bpf_map = BpfMap.create(spec)
        bpf_map.pin(path)
        return bpf_map

    def close(self) -> None:
        """Close all descriptors. Pins stay, so forwarding goes on."""
        for bpf_map in self._maps.values():
            bpf_map.close()
        for link in self._links.values():
            link.close()
        if self._generation is not None:
            self._generation.close()
            self._generation = None
        self._maps, self._links = {}, {}

    def observe(self) -> Observed:
        """Read what the kernel holds, and clear away what no interface can run any more."""
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
        return replace(self._generation.observe(), attached=self._attached(), outdated=outdated)

    def _mode_fits(self, link: Link) -> bool:
        return self._mode is XdpMode.AUTO or link.mode == self._mode.value

    def _attached(self) -> dict[str, int]:
        return {name: link.info.ifindex for name, link in self._links.items()}

    def _open_links(self) -> dict[str, int]:
        """Open the pinned links that still have their interface; return their programs' ids."""
        running = {}
        for interface in self._pins.linked_interfaces():
            path = self._pins.link(interface)
            link = open_link(interface, path)
            if link is None:
                continue
            info = link.info
            if info.ifindex == 0:
                _log.info("interface=%s was removed: its link is void", interface)
                link.close()
                path.unlink(missing_ok=True)
                continue
            link.mode = self._mode_of(interface, info.program_id)
            self._links[interface] = link
            running[interface] = info.program_id
        return running

    def _mode_of(self, interface: str, program_id: int) -> str:
        """Return the mode that a link runs in.

        Raises AttachError where its program is not to be seen: the interface is another network
        namespace's, of the same name.
        """
        try:
            there = attached(interface)
        except AttachError:
            there = None
        if there is None or there.program_id != program_id:
            raise AttachError(
                f"{self._pins.root}: its program {program_id} runs on {interface} of another "
                "network namespace: choose another gateway.name here, or run lb-xdp there"
            )
        return there.mode

    def _open_generation(self, running: set[int]) -> Generation | None:
        """Open the newest generation that some interface runs; without any, the newest one."""
        found: list[Generation] = []
        for number in self._pins.generations():
            try:
                found.append(open_generation(self._pins.generation(number), number))
            except FileNotFoundError:
                self._pins.remove_generation(number)  # cut off while it was being pinned
            except MapError:
                if not self._replace:
                    raise
        used = [generation for generation in found if generation.program.id in running]
        chosen = used[-1] if used else found[-1] if found else None
        for generation in found:
            if generation is not chosen:
                generation.close()
        return chosen

    def prepare(self, plan: Plan) -> None:
        """Do the slow part of a plan, the compiler's, ahead; may run in any thread."""
        if plan.build:
            prepare_generation(plan)

    def apply(self, plan: Plan, observed: Observed) -> Observed:
        """Do what the plan says and return the new picture. Raises DatapathError.

        If building fails, nothing has changed. If a later step fails, ``observe`` again.
        """
        self._drop_void_links()
        if plan.build:
            self._build(plan)
        elif self._generation is not None:
            for identity, record in plan.records.items():
                self._generation.write_record(identity, plan.indices[identity], record)
            for service, slots in plan.rings.items():
                self._generation.write_ring(service, slots)
        self._attach(plan)
        for interface in plan.detach:
            if interface in self._links:
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
        )

    def _drop_void_links(self) -> None:
        """Forget links whose interface was removed: the kernel severed them with it."""
        for interface, link in list(self._links.items()):
            if link.info.ifindex == 0:
                self._links.pop(interface).remove()

    def _build(self, plan: Plan) -> None:
        counters.reset(self._maps["counts"], self._maps["nat_marks"], plan.fresh)
        folder = self._pins.generation(plan.generation)
        self._pins.remove_generation(plan.generation)
        built = build_generation(plan, self._maps)
        try:
            built.pin(folder)
        except BaseException:
            built.close()
            self._pins.remove_generation(plan.generation)
            raise
        before, self._generation = self._generation, built
        try:
            for link in self._links.values():
                link.run(built.program.fd)
        except BaseException:
            self._back_to(before)
            raise
        if before is not None:
            before.close()

    def _back_to(self, before: Generation | None) -> None:
        """Undo a swap that failed on one interface: all run the generation from before."""
        failed, self._generation = self._generation, before
        for link in self._links.values():
            if before is not None:
                link.run(before.program.fd)
        if failed is not None:
            failed.close()
            if before is not None:
                self._pins.remove_generation(failed.number)

    def _attach(self, plan: Plan) -> None:
        if self._generation is None:
            return
        for interface, ifindex in plan.attach.items():
            self._maps["devices"].write(ifindex, ifindex)
            if not self._reuse_link(interface, ifindex, self._generation.program.fd):
                self._links[interface] = create_link(
                    interface,
                    ifindex,
                    self._generation.program.fd,
                    self._mode,
                    self._pins.link(interface),
                    replace=self._replace,
                )

    def _reuse_link(self, interface: str, ifindex: int, program_fd: int) -> bool:
        """Let the interface's link run the program; False if it has none that can.

        A link keeps its mode for life: another mode takes a new one, and a moment without program.
        """
        link = self._links.get(interface)
        if link is None:
            return False
        if link.info.ifindex == ifindex and self._mode_fits(link):
            link.run(program_fd)
            return True
        if link.info.ifindex == ifindex:
            _log.warning("interface %s changes from %s to %s mode: unattached for a moment",
                         interface, link.mode, self._mode)  # fmt: skip
        self._links.pop(interface).remove()
        return False

    def _remove_old_generations(self, keep: int) -> None:
        for number in self._pins.generations():
            if number != keep:
                self._pins.remove_generation(number)
        if self._replace:
            for folder in self._pins.other_layouts():
                _log.warning("removing the pins of another layout at %s", folder)
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
        return counters.backend_counts(self._map("counts"), indices)

    def reason_counts(self) -> tuple[ReasonCount, ...]:
        """Return how many packets ended with each reason."""
        return counters.reason_counts(self._map("reasons"))

    def flow_usage(self) -> tuple[int, int]:
        """Return how many flows are recorded, and how many can be."""
        return counters.entries(self._map("nat_flows")), NAT_FLOWS


def remove_pins(gateway: str, bpffs: Path | None = None) -> list[str]:
    """Detach a gateway whose daemon does not run, whatever layout its pins have."""
    pins = Pins(bpffs or find_bpffs(), gateway, layout().version)
    return Datapath(pins, XdpMode.AUTO, replace=False).remove()
