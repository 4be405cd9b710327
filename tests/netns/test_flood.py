"""Millions of SYNs from everywhere: they cost what packets cost, and nobody else anything."""

from __future__ import annotations

import logging
import time
from typing import Any

import pytest

from tests.support.clients import broken
from tests.support.flood import flood
from tests.support.gateway import PATIENT_CHECK, config_for
from tests.support.lab import Lab
from tests.support.scenes import Scene, wait_until, web_scene
from tests.support.topologies import VIP

pytestmark = pytest.mark.slow

_log = logging.getLogger(__name__)

_SYNS = 2_000_000
_CONNECTIONS = 200
_IDLE = 60
_FLOW_ENTRIES = 65_536
_LOOK_S = 5.5
"""The collector looks at the flow table every 5 s."""


def send_syns(scene: Scene, count: int) -> None:
    """Flood the service; return when the gateway has counted nearly all as flows."""
    before, begun = flows(scene), time.monotonic()
    mac = scene.network.gateway.mac("eth0")
    sent = flood(scene.client, "eth0", mac, (VIP, 80), count=count)
    arrived = flows(scene) - before
    _log.info("%d of %d SYNs in %.1f s", arrived, sent, time.monotonic() - begun)
    assert arrived > 0.9 * count  # a cable that is full drops some


def flows(scene: Scene) -> float:
    return scene.gateway.metric("lb_xdp_backend_flows_total")


def entries(scene: Scene) -> float:
    return scene.gateway.metric("lb_xdp_flow_table_entries")


@pytest.mark.parametrize(("mode", "syns"), [("nat", _SYNS), ("dsr", _SYNS // 4)])
def test_a_flood_leaves_no_trace_in_a_settled_service(lab: Lab, mode: str, syns: int) -> None:
    """Millions of SYNs: the flow table does not grow, no connection breaks, new ones work."""
    scene = web_scene(lab, mode, health=PATIENT_CHECK)
    with scene.held(_CONNECTIONS, idle=_IDLE, timeout_s=10) as held:
        send_syns(scene, syns)
        time.sleep(_LOOK_S)
        assert entries(scene) == 0
    assert not broken(held)
    assert {one.backend for one in held} == {"b1", "b2", "b3"}
    assert scene.ask().keys() == {"b1", "b2", "b3"}


def test_a_flood_while_slots_settle_breaks_nothing(lab: Lab) -> None:
    """It fills the table, and open connections live on, recorded or not; then it drains away."""
    times = {"entries": _FLOW_ENTRIES, "tcp_opening": "1s", "tcp_closing": "1s"}
    options: dict[str, Any] = {"health": PATIENT_CHECK, "gateway": {"flow_table": times}}
    scene = web_scene(lab, backends=4, weights=(100, 100, 100), **options)
    wider = config_for(scene.network, weights=(100, 100, 100, 300), **options)
    with scene.held(_CONNECTIONS, idle=_IDLE, timeout_s=10) as held:
        scene.gateway.take(wider)
        scene.gateway.wait_until_up("b4")
        with scene.held(_CONNECTIONS, idle=_IDLE, timeout_s=10) as later:
            send_syns(scene, _SYNS // 4)
    every = {"b1", "b2", "b3", "b4"}
    wait_until(lambda: scene.ask().keys() == every, "there is room again", timeout_s=20)
    assert not broken(held + later)
    assert {one.backend for one in held} == {"b1", "b2", "b3"}
    assert {one.backend for one in later} == every
