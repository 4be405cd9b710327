"""Thousands of random valid configurations, one after the other, on real maps and interfaces."""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from lb_xdp.config.effective import effective
from lb_xdp.config.load import parse_config
from lb_xdp.core.desired import Desired
from lb_xdp.core.goals import desire
from lb_xdp.core.model import XdpMode
from lb_xdp.core.plan import make_plan, ring_slots
from lb_xdp.core.rings import Rings
from lb_xdp.core.settle import current_of
from lb_xdp.core.topology import Interface
from lb_xdp.datapath import syscall
from lb_xdp.datapath.compile import build_id
from lb_xdp.datapath.gateway import Datapath
from lb_xdp.native import give_memory_back, keep_no_large_blocks
from tests.support.configs import FLOW_ENTRIES, Step, Walk
from tests.support.scenes import wait_until
from tests.support.veths import veths

_log = logging.getLogger(__name__)

_SEED = 5
_BPFFS = Path("/sys/fs/bpf")
_RSS_SPREAD_BYTES = 24 << 20
"""What the allocator may keep, and the largest configuration of the walk; a leak has no bound."""


@pytest.fixture
def interfaces() -> Iterator[tuple[Interface, ...]]:
    """Provide two interfaces, in the sandbox's own namespace."""
    with veths("many0", "many1") as made:
        yield tuple(made.values())


@dataclass(frozen=True, slots=True)
class Memory:
    """What this process and its gateway hold: maps by count and bytes, descriptors, pins."""

    maps: int
    map_bytes: int
    descriptors: int
    pins: int


class Controller:
    """A datapath that is taken from configuration to configuration, as the reconciler would."""

    def __init__(self) -> None:
        self._datapath = Datapath.open("many", XdpMode.AUTO, flow_entries=FLOW_ENTRIES)
        self.observed = self._datapath.observe()
        self._rings = Rings()
        self._now_ns = time.monotonic_ns()
        self.seen_maps: set[int] = set()
        self.builds = 0

    def close(self) -> None:
        self._datapath.remove()

    def take(self, step: Step) -> None:
        """Plan and apply a step, read everything back, and assert that it is what was wanted."""
        self._now_ns += 20_000_000_000
        desired = desire(
            step.config, step.topology, step.live, self._rings.ring_of,
            build=build_id(), held=self.observed.records,
        )  # fmt: skip
        plan = make_plan(self.observed, desired, self._now_ns)
        self.builds += plan.build
        if plan.build:
            self._datapath.prepare(plan)
        applied = self._datapath.apply(plan, self.observed)
        self._rings.forget_others(step.config.services)
        self._assert_read_back(desired)
        assert applied.records == self.observed.records
        assert applied.indices == self.observed.indices
        self.observed = replace(self.observed, applied=desired)
        self.seen_maps |= held_maps().keys() if plan.build else set()

    def _assert_read_back(self, desired: Desired) -> None:
        observed = self.observed = self._datapath.observe()
        assert observed.structure == desired.structure
        assert observed.records == desired.records
        assert observed.attached == desired.interfaces
        assert not observed.outdated
        assert observed.rings.keys() == desired.rings.keys()
        for service, ring in desired.rings.items():
            wanted = ring_slots(service, ring, observed.indices).numbers()
            assert np.array_equal(current_of(observed.rings[service].slots), wanted)
        assert make_plan(observed, desired, self._now_ns).empty

    def memory(self) -> Memory:
        maps = held_maps()
        pins = sum(len(files) for _, _, files in os.walk(_BPFFS / "lb-xdp/many"))
        descriptors = len(list(Path("/proc/self/fd").iterdir()))
        return Memory(len(maps), sum(maps.values()), descriptors, pins)


def held_maps() -> dict[int, int]:
    """Return the maps that this process holds descriptors of: bytes of kernel memory by id."""
    found = {}
    for entry in Path("/proc/self/fdinfo").iterdir():
        with suppress(FileNotFoundError):
            lines = entry.read_text(encoding="ascii").splitlines()
            fields = dict(line.split(":", 1) for line in lines if ":" in line)
            if "map_id" in fields:
                found[int(fields["map_id"])] = int(fields["memlock"])
    return found


def rss_bytes() -> int:
    """Return what this process holds, once what it has freed is given back as the daemon does."""
    give_memory_back()
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def assert_valid(step: Step) -> None:
    """The configuration is one that a file can hold: written out and read again it is the same."""
    read = parse_config(effective(step.config), "")
    assert replace(read, warnings=()) == step.config


def test_the_walk_is_through_valid_configurations(interfaces: tuple[Interface, ...]) -> None:
    """Every step is accepted by the parser, as it is; the same seed gives the same steps."""
    steps = list(Walk(_SEED, interfaces, era_steps=4).steps(60))
    for step in steps:
        assert_valid(step)
    assert steps == list(Walk(_SEED, interfaces, era_steps=4).steps(60))


def test_many_configurations_are_reached_and_memory_stays_flat(
    interfaces: tuple[Interface, ...], request: pytest.FixtureRequest
) -> None:
    """Each is planned, applied and read back equal; one that comes back costs what it did first.

    ``--configurations N`` goes on for longer; every hundredth step the first one is taken again.
    """
    keep_no_large_blocks()
    count = int(request.config.getoption("--configurations"))
    steps = Walk(_SEED, interfaces, era_steps=40, structural=0.05).steps(count)
    controller, notes = Controller(), Counter[str]()
    try:
        first = next(steps)
        controller.take(first)
        controller.take(first)
        memory, began_s, rss = controller.memory(), time.monotonic(), [rss_bytes()]
        for number, step in enumerate(steps, 2):
            controller.take(step)
            notes[step.note] += 1
            if number % 20 == 0:
                assert_valid(step)
            if number % 100 == 0 or number == count:
                controller.take(first)
                assert controller.memory() == memory
                rss.append(rss_bytes())
                took_s, held_mb = time.monotonic() - began_s, memory.map_bytes / 1e6
                _log.info(
                    "%d configurations, %d generations, %.0f s; %.1f MB of maps, %.0f MB resident",
                    number,
                    controller.builds,
                    took_s,
                    held_mb,
                    rss[-1] / 1e6,
                )
        present = held_maps().keys()
    finally:
        controller.close()
    assert set(notes) >= {"reweigh", "relimit", "settle_otherwise", "stay"}
    assert max(rss[len(rss) // 2 :]) <= max(rss[: len(rss) // 2 + 1]) + _RSS_SPREAD_BYTES
    gone = controller.seen_maps - present
    # The kernel frees a program and its maps a grace period after their last user.
    wait_until(lambda: not any(map(exists, gone)), "the maps of former generations are freed")


def exists(map_id: int) -> bool:
    """Say whether the kernel still has a map."""
    try:
        os.close(syscall.map_open(map_id))
    except FileNotFoundError:
        return False
    return True
