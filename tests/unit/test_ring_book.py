"""A daemon that starts anew builds no ring that the kernel is known to have."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import numpy as np
import pytest

from lb_xdp.core.desired import BackendId, Desired
from lb_xdp.core.goals import desire
from lb_xdp.core.model import Config, Service
from lb_xdp.core.plan import Observed, make_plan
from lb_xdp.core.rings import Rings
from lb_xdp.core.settle import compacted
from lb_xdp.core.topology import Interface, NextHop, Topology
from lb_xdp.ring_book import RingBook
from tests.support.plans import Kernel
from tests.unit.test_reconciler import config as config_of

NOW_NS = 10**12
MAC = bytes.fromhex("020000000001")


def goal_of(config: Config, rings: Rings, *down: IPv4Address) -> Desired:
    """Return the goal of a configuration whose backends are up but for those that are down."""
    hops = {b.address: NextHop(1, MAC, MAC, None, on_link=True) for _, b in config.backends()}
    topology = Topology({"eth0": Interface("eth0", 1, MAC, 1500, up=True)}, hops)
    live = {BackendId(s.key, b.key) for s, b in config.backends() if b.address not in down}
    return desire(config, topology, live, rings.ring_of, build=1, held={})


def address_of(config: Config, number: int) -> IPv4Address:
    (service,) = config.services
    address = service.pool.backends[number].address
    assert isinstance(address, IPv4Address)
    return address


@pytest.fixture
def config() -> Config:
    return config_of(100, 100)


@pytest.fixture
def kernel(config: Config, tmp_path: Path) -> Kernel:
    """A kernel that a daemon has brought to its goal; that wrote down what it had made."""
    kernel, goal = Kernel(), goal_of(config, Rings())
    kernel.apply(make_plan(Observed(), goal, NOW_NS))
    RingBook(tmp_path).write(replace(kernel.observe(), applied=goal))
    return kernel


def plan_anew(kernel: Kernel, goal: Desired, directory: Path) -> bool:
    """Say whether a daemon that starts there has something to do."""
    return not make_plan(RingBook(directory).completed(kernel.observe()), goal, NOW_NS).empty


def test_what_is_written_down_need_not_be_built(
    config: Config, kernel: Kernel, tmp_path: Path
) -> None:
    """The next daemon finds nothing to do, and has built no ring to find that out."""
    rings = Rings()
    assert not plan_anew(kernel, goal_of(config, rings), tmp_path)
    assert rings.builds == 0


def test_another_goal_is_gone_to(config: Config, kernel: Kernel, tmp_path: Path) -> None:
    """A backend that has died since is taken out of the ring, whatever was written down."""
    rings = Rings()
    assert plan_anew(kernel, goal_of(config, rings, address_of(config, 1)), tmp_path)
    assert rings.builds == 1


def test_slots_that_are_others_by_now_are_put_right(
    config: Config, kernel: Kernel, tmp_path: Path
) -> None:
    """What was written down says nothing of slots that somebody has changed since."""
    (generation,) = kernel.generations.values()
    ((key, image),) = generation.rings.items()
    slots = image.slots.copy()
    slots[7] = slots[np.flatnonzero(slots != slots[7])[0]]
    generation.rings[key] = image._replace(held=compacted(slots))
    assert plan_anew(kernel, goal_of(config, Rings()), tmp_path)


def test_slots_that_settle_are_not_written_down(config: Config, tmp_path: Path) -> None:
    """They depend on what was before, so the next daemon looks at them slot by slot."""
    kernel, rings = Kernel(), Rings()
    first, then = goal_of(config, rings), goal_of(config_of(100, 50), rings)
    kernel.apply(make_plan(Observed(), first, NOW_NS))
    kernel.apply(make_plan(kernel.observe(), then, NOW_NS))
    RingBook(tmp_path).write(replace(kernel.observe(), applied=then))
    assert RingBook(tmp_path).completed(kernel.observe()).proven == {}
    assert not plan_anew(kernel, then, tmp_path)


@pytest.mark.parametrize("text", ["", "[1]", '{"x": 1}', '{"x": ["00", "zz"]}', "\x00"])
def test_a_page_that_cannot_be_read_costs_time_only(
    text: str, config: Config, kernel: Kernel, tmp_path: Path
) -> None:
    """Rings are then built, and found to be what the kernel has."""
    (tmp_path / "rings.json").write_text(text)
    rings = Rings()
    assert not plan_anew(kernel, goal_of(config, rings), tmp_path)
    assert rings.builds == 1


def test_a_full_disk_is_no_trouble(config: Config, kernel: Kernel, tmp_path: Path) -> None:
    """What cannot be written is left; pages name services as people do."""
    (page,) = json.loads((tmp_path / "rings.json").read_text())
    service: Service = config.services[0]
    assert page == str(service.key)
    RingBook(tmp_path / "missing").write(replace(kernel.observe(), applied=None))
