"""The datapath of a gateway, plan after plan, on real interfaces."""

from __future__ import annotations

import time
from dataclasses import replace

from lb_xdp.core.goals import desire
from lb_xdp.core.model import Mode, XdpMode
from lb_xdp.core.plan import make_plan
from lb_xdp.core.rings import Rings
from lb_xdp.datapath.compile import build_id
from lb_xdp.datapath.gateway import Datapath
from tests.support.program import INNER, OUTER, LoadedProgram, Wire, service


def test_nothing_is_sent_by_an_interface_that_was_given_up(wire: Wire) -> None:
    """An interface taken out of the configuration is none of those to redirect to any more."""
    with LoadedProgram(wire, service(Mode.NAT)) as loaded:
        config, topology, live = loaded.config, loaded.topology, loaded.live
    datapath = Datapath.open("given-up", XdpMode.AUTO, replace=True)
    try:
        observed = datapath.observe()
        for interfaces in ((OUTER, INNER), (INNER,)):
            goal = replace(config, gateway=replace(config.gateway, interfaces=interfaces))
            desired = desire(goal, topology, live, Rings().ring_of, build=build_id(), held={})
            observed = datapath.apply(make_plan(observed, desired, time.monotonic_ns()), observed)
            index = {name: topology.interfaces[name].index for name in (OUTER, INNER)}
            devices = datapath._map("devices")
            assert {n for n in index if devices.read(index[n]) is not None} == set(interfaces)
    finally:
        datapath.remove()
