"""A gateway's snapshot with a bit of everything, and a controller that shows it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from lb_xdp.core.event import Event, EventFilter, EventKind
from lb_xdp.core.override import Override, Overrides, Subject
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
from lb_xdp.errors import LbError

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


EVENTS = (
    Event(EventKind.STARTED, 1_700_000_000.0, cause="version 0.1.0", number=7),
    Event(
        EventKind.BACKEND_STATE,
        1_700_000_060.25,
        "web",
        "web2",
        "up",
        "down",
        "no answer within 1s (3 of 3)",
        duration_s=1.0021,
        number=8,
    ),
)


@dataclass
class FakeController:
    """Shows ``shown`` and notes what it was asked for; ``refusal`` is raised by every call."""

    shown: Snapshot = SNAPSHOT
    refusal: LbError | None = None
    calls: list[str] = field(default_factory=list)
    held: Overrides = field(default_factory=Overrides)

    def snapshot(self) -> Snapshot:
        self._note("snapshot")
        return self.shown

    async def events(self, wanted: EventFilter, wait_s: float) -> list[Event]:
        del wait_s
        self._note("events")
        return [event for event in EVENTS if wanted.fits(event)][-wanted.newest :]

    async def reload(self) -> str:
        self._note("reload")
        return "reloaded: 1 backend added, 1200 of 65537 slots moved"

    async def detach(self) -> None:
        self._note("detach")

    def overrides(self) -> Overrides:
        return self.held

    async def set_overrides(self, *overrides: Override) -> None:
        self._note("set " + ", ".join(f"{o.subject} {o}" for o in overrides))
        self.held = self.held.having(*overrides)

    async def clear_overrides(self, *subjects: Subject, author: str = "") -> None:
        self._note("clear " + ", ".join(map(str, subjects)) + f" by {author}")
        self.held = self.held.lacking(*subjects)

    def _note(self, call: str) -> None:
        self.calls.append(call)
        if self.refusal:
            raise self.refusal
