"""A gateway's snapshot with a bit of everything."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from lb_xdp.api.wire import encode
from lb_xdp.core.snapshot import (
    Admin,
    BackendStatus,
    DatapathStatus,
    FlowTableStatus,
    Handshakes,
    Health,
    ProgramStatus,
    ReasonCount,
    ReloadStatus,
    ServiceStatus,
    Share,
    Snapshot,
    State,
    Verdict,
)

NOW_S = 1_700_000_000.0

WEB1 = BackendStatus(
    name="web1",
    address="10.0.0.11:8080",
    state=State.UP,
    admin=Admin.READY,
    health=Health.UP,
    weight=100,
    slots=21_846,
    packets=12_345_678,
    bytes=1_234_567_890,
    flows=20_000,
    reply_packets=12_000_000,
    reply_bytes=9_000_000_000,
    detail="2 of 2 probes succeeded",
    since_timestamp_s=NOW_S - 11_520,
    probe_duration_s=0.004,
    recorded=7,
    connections=12,
    max_connections=1000,
    availability={"1h": Share(1.0, 3600.0), "24h": Share(0.9975, 11_520.0)},
    handshakes=Handshakes(
        20_000, 19_990, 12, 3, exact=True, duration_us=2_400_000, durations=(0, 9_000, 10_990)
    ),
)
WEB2 = replace(WEB1, name="web2", address="10.0.0.12:8080", weight=200, slots=43_691)
WEB3 = replace(
    WEB1,
    name="10.0.0.13:8080",
    address="10.0.0.13:8080",
    state=State.DOWN,
    health=Health.DOWN,
    slots=0,
    packets=999_999,
    bytes=77_000,
    flows=7,
    detail="connection refused",
    since_timestamp_s=NOW_S - 12,
    probe_duration_s=None,
)
WEB = ServiceStatus(
    name="web",
    vip="203.0.113.10",
    port=80,
    protocol="tcp",
    mode="nat",
    algorithm="maglev",
    pool="web",
    backends=(WEB1, WEB2, WEB3),
)
SNAPSHOT = Snapshot(
    gateway="gw1",
    version="0.1.0",
    pid=4242,
    started_timestamp_s=NOW_S - 11_520,
    timestamp_s=NOW_S,
    config_source="/etc/lb-xdp/gw1.yaml",
    ready=True,
    last_reload=ReloadStatus(success=True, timestamp_s=NOW_S - 200),
    failovers=3,
    ring_build_s=0.0125,
    datapath=DatapathStatus(
        programs=(ProgramStatus("eth0", "native", 51), ProgramStatus("eth1", "generic", 52)),
        generation=3,
        layout=1,
        netns=4_026_531_840,
        ring_slots=65_537,
        flow_table=FlowTableStatus(
            entries=500, capacity=10_000, inserted=900, closed=300, expired=80, full=3, rehashed=17
        ),
        reasons=(
            ReasonCount(Verdict.FORWARD, "nat_to_backend", 25_000_000),
            ReasonCount(Verdict.PASS, "not_vip", 1_200),
            ReasonCount(Verdict.DROP, "no_backend", 0),
        ),
    ),
    services=(WEB,),
    api_strangers=5,
)
TROUBLED = replace(
    SNAPSHOT,
    ready=False,
    last_reload=ReloadStatus(
        success=False,
        timestamp_s=NOW_S - 30,
        errors=("lb.yaml:7:5: pools[0].backends[0].weight: -1 is not allowed, 0 to 65535 is",),
    ),
    notices=("service web has no backend that is up: its packets are dropped",),
)


def as_json(snapshot: Snapshot) -> dict[str, Any]:
    """Return what the API answers: enums as their values, tuples as lists."""
    document: dict[str, Any] = json.loads(encode(snapshot))
    return document
