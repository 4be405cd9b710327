"""The real datapath, cut off at any write: what it leaves is safe, and the next plan goes on.

Two cuts: the process dies (a child that ends itself, so that nothing is undone), and the kernel
refuses one write (so that what can be undone is).
"""

from __future__ import annotations

import errno
import itertools
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

from lb_xdp.core.desired import BackendId, Desired
from lb_xdp.core.goals import desire
from lb_xdp.core.model import Address, Config, Gateway, Mode, Service, XdpMode
from lb_xdp.core.plan import Observed, Plan, make_plan, ring_slots
from lb_xdp.core.rings import Rings
from lb_xdp.core.settle import NO_BACKEND, current_of, former_of
from lb_xdp.core.topology import Interface, NextHop, Topology
from lb_xdp.datapath import syscall
from lb_xdp.datapath.bpffs import Pins
from lb_xdp.datapath.compile import build_id
from lb_xdp.datapath.gateway import Datapath
from lb_xdp.datapath.generation import open_generation
from lb_xdp.datapath.layout import layout
from lb_xdp.datapath.maps import BpfMap, persistent_specs
from lb_xdp.errors import DatapathError
from tests.support.program import backend_address, backend_mac, service
from tests.support.veths import veths

_NAME = "cut"
_NAMES = ("cut0", "cut1")
_DIED = 77
_WRITES = ("map_create", "map_update", "map_delete", "pin", "link_create", "link_update",
           "link_detach", "program_load")  # fmt: skip
"""All by which the datapath changes something in the kernel."""


@pytest.fixture(scope="module")
def interfaces() -> Iterator[dict[str, Interface]]:
    with veths(*_NAMES) as made:
        yield made


class Power:
    """Counts what changes the kernel; at one such write, ``at`` from now, ``end`` happens."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.written = 0
        self.at = -1
        self.end: Callable[[], object] = die
        for name in _WRITES:
            patch.setattr(syscall, name, self._watched(getattr(syscall, name)))

    def _watched(self, write: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*arguments: Any, **named: Any) -> Any:
            number, self.written = self.written, self.written + 1
            if number == self.at:
                self.end()
            return write(*arguments, **named)

        return watched

    def cut(self, at: int, end: Callable[[], object]) -> None:
        self.written, self.at, self.end = 0, at, end


def die() -> NoReturn:
    os._exit(_DIED)


def refuse() -> NoReturn:
    raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))


@pytest.fixture
def power(monkeypatch: pytest.MonkeyPatch) -> Power:
    return Power(monkeypatch)


@dataclass
class Goals:
    """Makes desired states of services over backends on the wire of the last interface."""

    interfaces: dict[str, Interface]
    rings: Rings = field(default_factory=Rings)

    def goal(
        self, *services: Service, names: tuple[str, ...] = _NAMES, away: tuple[int, ...] = ()
    ) -> Desired:
        """Return a goal; there is no way to the backends ``away``."""
        known = {name: self.interfaces[name] for name in names}
        way = known[names[-1]]
        hops: dict[Address, NextHop] = {
            backend_address(n): NextHop(way.index, way.mac, backend_mac(n), None, on_link=True)
            for n in set(range(1, 10)) - set(away)
        }
        gateway = Gateway(_NAME, names, XdpMode.AUTO, "/api.sock", None)
        config = Config(gateway, services)
        live = {BackendId(s.key, backend.key) for s, backend in config.backends()}
        topology = Topology(known, hops)
        return desire(config, topology, live, self.rings.ring_of, build=build_id(), held={})


class Controller:
    """One life of a controller, from reading the kernel to its end."""

    def __init__(self) -> None:
        self.datapath = Datapath.open(_NAME, XdpMode.AUTO)
        self.observed = self.datapath.observe()

    def plan(self, goal: Desired) -> Plan:
        return make_plan(self.observed, goal, time.monotonic_ns())

    def apply(self, plan: Plan) -> None:
        self.observed = self.datapath.apply(plan, self.observed)

    def go_to(self, goal: Desired) -> None:
        """Go to a goal, read it back, and have nothing left to do."""
        self.apply(self.plan(goal))
        assert_safe()
        self.observed = found = self.datapath.observe()
        assert (found.structure, found.records) == (goal.structure, goal.records)
        assert found.attached == goal.interfaces
        assert not found.outdated
        for key, ring in goal.rings.items():
            wanted = ring_slots(key, ring, found.indices).numbers()
            assert np.array_equal(current_of(found.rings[key].slots), wanted)
        assert self.plan(goal).empty


class Alive:
    """The controller that lives; one at a time."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        self.controller = Controller()

    def end(self) -> None:
        self.controller.datapath.close()


@pytest.fixture
def alive() -> Iterator[Alive]:
    made = Alive()
    yield made
    made.end()
    Controller().datapath.remove()


def assert_safe() -> None:
    """Whatever an interface runs is whole: its rings name reachable records of their own service.

    What is pinned is enough to go on: a map or program that nobody has pinned would be gone.
    """
    pins = Pins(Path("/sys/fs/bpf"), _NAME, layout().version)
    running = {}
    for name in pins.linked_interfaces():
        fd = syscall.open_pin(str(pins.link(name)))
        running[name] = syscall.link_info(fd).program_id
        os.close(fd)
    (spec,) = (spec for spec in persistent_specs(16, 0) if spec.name == "limits")
    pinned = {}
    with BpfMap.reopen(spec, pins.maps / "limits") as limits:
        for number in pins.generations():
            try:
                opened = open_generation(pins.generation(number), number, limits)
            except FileNotFoundError:
                continue  # cut off while it was being pinned
            pinned[opened.program.id] = opened.observe()
            opened.close()
    assert set(running.values()) <= pinned.keys()
    for program in set(running.values()):
        assert_whole(pinned[program])


def assert_whole(found: Observed) -> None:
    by_index = {index: key for key, index in found.indices.items()}
    assert len(by_index) == len(found.indices)
    for key, image in found.rings.items():
        named = {*current_of(image.slots).tolist(), *former_of(image.slots).tolist()}
        for index in named - {NO_BACKEND}:
            assert by_index[index].service == key
            assert found.records[by_index[index]].reachable


def died_at(controller: Controller, plan: Plan, power: Power, at: int) -> bool:
    """Have a child carry a plan out that dies at a write; say whether it came to that."""
    child = os.fork()
    if child == 0:
        power.cut(at, die)
        try:
            controller.apply(plan)
        except BaseException:  # noqa: BLE001 - the child must not become a second pytest
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, _DIED)
    return code == _DIED


WEB = service(Mode.DSR)
LIGHTER = replace(
    WEB,
    pool=replace(
        WEB.pool,
        backends=tuple(replace(b, weight=10 * n) for n, b in enumerate(WEB.pool.backends, 1)),
    ),
)
OTHERS = service(Mode.DSR, backends=(2, 3, 4))
MORE = service(Mode.DSR, 81, name="more")


def changes(goals: Goals) -> dict[str, tuple[Desired, Desired]]:
    """Return changes of every kind, each from a goal to another."""
    web, one_armed = goals.goal(WEB), goals.goal(WEB, names=_NAMES[1:])
    exchanged = goals.goal(OTHERS, MORE, names=_NAMES[1:])
    lighter = goals.goal(LIGHTER, away=(2,))
    return {
        "backends and services come and go, an interface goes": (web, exchanged),
        "and back": (exchanged, web),
        "weights change, a backend is out of reach": (web, lighter),
        "it is in reach again": (lighter, web),
        "an interface comes": (one_armed, web),
    }


KINDS = list(changes(Goals({n: Interface(n, 1, bytes(6), 1500, up=True) for n in _NAMES})))


def stride(start: Desired, goal: Desired) -> int:
    """Return how many writes to go on by: another generation takes half a second each time."""
    return 1 if start.structure == goal.structure else 3


@pytest.mark.parametrize("kind", KINDS)
def test_a_controller_that_dies_at_any_write(
    kind: str, interfaces: dict[str, Interface], power: Power, alive: Alive
) -> None:
    """What it leaves is whole, and the next life reaches the goal; nothing was undone before."""
    start, goal = changes(Goals(interfaces))[kind]
    for at in itertools.count(0, stride(start, goal)):
        alive.controller.go_to(start)
        plan = alive.controller.plan(goal)
        alive.controller.datapath.prepare(plan)
        died = died_at(alive.controller, plan, power, at)
        alive.end()
        assert_safe()
        alive.begin()
        alive.controller.go_to(goal)
        if not died:
            break
    assert at > 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_write_that_the_kernel_refuses(
    kind: str, interfaces: dict[str, Interface], power: Power, alive: Alive
) -> None:
    """It is told as an error, what was begun is undone or goes on, and the next cycle arrives."""
    start, goal = changes(Goals(interfaces))[kind]
    controller = alive.controller
    for at in itertools.count(1, stride(start, goal)):
        controller.go_to(start)
        plan = controller.plan(goal)
        controller.datapath.prepare(plan)
        power.cut(at, refuse)
        try:
            controller.apply(plan)
        except DatapathError:
            power.cut(-1, refuse)
            controller.observed = controller.datapath.observe()
        refused, power.at = power.at < 0, -1
        assert_safe()
        controller.go_to(goal)
        if not refused:
            break
    assert at > 2
