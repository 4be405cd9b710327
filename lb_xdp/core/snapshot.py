"""What a running gateway looks like at one moment: the value behind status, API and metrics.

The reconciler makes a ``Snapshot``; the API turns it into JSON, the metrics adapter into samples,
the CLI into a table. It holds no behaviour beyond lookups. Counters are totals since the program's
maps were made; times are seconds, ``*_timestamp_s`` since the Unix epoch.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Admin(StrEnum):
    """What was asked of a backend."""

    READY = "ready"
    DRAIN = "drain"
    MAINT = "maint"
    DOWN = "down"


class Health(StrEnum):
    """What probes say of a backend after rise and fall; none where nothing probes it."""

    UP = "up"
    DOWN = "down"
    UNKNOWN = "unknown"
    NONE = "none"


class State(StrEnum):
    """What counts for traffic: the outcome of what was asked and what was seen."""

    UP = "up"
    DOWN = "down"
    DRAIN = "drain"
    MAINT = "maint"
    UNKNOWN = "unknown"


class Verdict(StrEnum):
    """What became of a packet."""

    PASS = "pass"  # noqa: S105 - a verdict, not a password
    FORWARD = "forward"
    DROP = "drop"


@dataclass(frozen=True, slots=True)
class ProgramStatus:
    """One attached XDP program. ``mode`` is native or generic, ``id`` the kernel's number."""

    interface: str
    mode: str
    id: int


@dataclass(frozen=True, slots=True)
class ReasonCount:
    """Packets that ended with one reason; the sum over all reasons is the packets seen."""

    verdict: Verdict
    reason: str
    packets: int


@dataclass(frozen=True, slots=True)
class BackendStatus:
    """One backend of one service.

    ``packets``, ``bytes`` and ``flows`` count what went to the backend: frames, octets from the
    Ethernet header on, and TCP SYNs. ``reply_*`` count what came back through the gateway (nat).
    ``slots`` is how many ring slots it holds now. ``detail`` says in words why the state is so.
    """

    name: str
    address: str
    state: State
    admin: Admin
    health: Health
    weight: int
    slots: int
    packets: int
    bytes: int
    flows: int
    reply_packets: int
    reply_bytes: int
    detail: str
    since_timestamp_s: float
    probe_duration_s: float | None = None


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """One service and its backends, in the file's order."""

    name: str
    vip: str
    port: int
    protocol: str
    mode: str
    algorithm: str
    pool: str
    backends: tuple[BackendStatus, ...]


@dataclass(frozen=True, slots=True)
class DatapathStatus:
    """What is loaded in the kernel. ``netns`` is the inode of the network namespace."""

    programs: tuple[ProgramStatus, ...]
    generation: int
    layout: int
    netns: int
    ring_slots: int
    flow_entries: int
    flow_capacity: int
    reasons: tuple[ReasonCount, ...]


@dataclass(frozen=True, slots=True)
class ReloadStatus:
    """How the last load of the configuration went; ``errors`` are the refused file's problems."""

    success: bool
    timestamp_s: float
    errors: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The whole gateway at one moment. ``notices`` are sentences that an operator should read."""

    gateway: str
    version: str
    pid: int
    started_timestamp_s: float
    timestamp_s: float
    config_source: str
    ready: bool
    last_reload: ReloadStatus
    failovers: int
    ring_build_s: float
    datapath: DatapathStatus
    services: tuple[ServiceStatus, ...]
    notices: tuple[str, ...] = ()
