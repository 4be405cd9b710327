"""What a running gateway looks like at one moment: the value behind status, API and metrics.

The reconciler makes a ``Snapshot``; the API turns it into JSON, the metrics adapter into samples,
the CLI into a table. It holds no behaviour beyond lookups. Counters are totals since the program's
maps were made; times are seconds, ``*_timestamp_s`` since the Unix epoch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
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


class Records(StrEnum):
    """Which flows of a service are recorded in the flow table."""

    ALL = "all"
    UNSETTLED = "unsettled"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Share:
    """``up`` is the part of the known time, 0 to 1; ``known_s`` how long that is in the window."""

    up: float
    known_s: float


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
class OverrideStatus:
    """One thing that was asked for at run time; ``kind`` is admin or weight."""

    kind: str
    value: str
    author: str
    reason: str
    at_timestamp_s: float
    expires_timestamp_s: float | None = None


@dataclass(frozen=True, slots=True)
class Handshakes:
    """What was seen of a backend's TCP handshakes.

    ``exact``: both directions pass, in nat and fullnat. Elsewhere ``answered`` are those whose
    client went on, and there are no ``resets`` (RSTs from the backend) and no durations.
    ``repeated`` counts SYNs. ``durations`` are how many took at most 16 us, 32 us, and so on, the
    last one longer than all, and ``duration_us`` their sum, from SYN to SYN-ACK.
    """

    begun: int
    answered: int
    repeated: int
    resets: int
    exact: bool
    duration_us: int = 0
    durations: tuple[int, ...] = ()


@dataclass(slots=True)
class BackendStatus:
    """One backend of one service. Nobody changes it, though it is not frozen.

    A frozen one takes ten times as long to make, and each look at a gateway may make 10,000.

    ``weight`` is the one that counts now, ``configured_weight`` the file's; ``overrides`` are what
    was asked for beside the file. ``priority`` 0 is the highest.

    ``packets``, ``bytes`` and ``flows`` count what went to the backend: frames, octets from the
    Ethernet header on, and TCP SYNs. ``reply_*`` count what came back through the gateway, in
    nat and fullnat.
    ``slots`` is how many ring slots it holds now. ``detail`` says in words why the state is so.
    ``recorded`` is how many flow records name it, as of the last look at the flow table.
    ``hidden``: it gets no new flow, and may have some without a record, which have been silent
    since before the last change of their slots.
    ``connections`` is how many it has, where its service counts them (else None), and
    ``max_connections`` how many it may have.
    ``availability`` is the part of the last ``1h``, ``24h`` and ``30d`` in which its state was up;
    a window in which nothing is known is missing. ``handshakes`` is None where they are not
    watched. ``ejected``: down because of what its traffic told, whatever probes say.
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
    recorded: int = 0
    connections: int | None = None
    max_connections: int | None = None
    configured_weight: int | None = None
    priority: int = 0
    overrides: tuple[OverrideStatus, ...] = ()
    availability: Mapping[str, Share] = field(default_factory=dict)
    hidden: bool = False
    handshakes: Handshakes | None = None
    ejected: bool = False


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """One service and its backends, in the file's order. ``port`` 0 is every port of the VIP.

    ``records`` is which of its flows have records: all (then ``why_tracked`` says in words why),
    those on slots that are not settled, or none. ``unsettled_slots`` changed hands a while ago,
    ``marked_slots`` may have records still. ``panic``: none of its backends is healthy.
    """

    name: str
    vip: str
    port: int
    protocol: str
    mode: str
    algorithm: str
    pool: str
    backends: tuple[BackendStatus, ...]
    affinity: str = "none"
    no_backend: str = "drop"
    why_tracked: str | None = None
    records: Records = Records.UNSETTLED
    unsettled_slots: int = 0
    marked_slots: int = 0
    panic: bool = False


@dataclass(frozen=True, slots=True)
class FlowTableStatus:
    """The flow table: records now (as of the last look), room, and what happened to records.

    ``full`` counts flows that found no room, ``rehashed`` those whose backend was gone or down.
    ``closed`` records were seen to end, ``expired`` ones were silent for too long.
    ``looked_timestamp_s`` is when the last look at the records began, 0 before the first.
    """

    entries: int = 0
    capacity: int = 0
    inserted: int = 0
    closed: int = 0
    expired: int = 0
    full: int = 0
    rehashed: int = 0
    looked_timestamp_s: float = 0.0


@dataclass(frozen=True, slots=True)
class DatapathStatus:
    """What is loaded in the kernel. ``netns`` is the inode of the network namespace."""

    programs: tuple[ProgramStatus, ...]
    generation: int
    layout: int
    netns: int
    ring_slots: int
    flow_table: FlowTableStatus
    reasons: tuple[ReasonCount, ...]


@dataclass(frozen=True, slots=True)
class ReloadStatus:
    """How the last load of the configuration went; ``errors`` are the refused file's problems."""

    success: bool
    timestamp_s: float
    errors: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ChangeStatus:
    """A configuration in force that is not simply the daemon's file, ``file``.

    It was given by ``author``, or is in force again since a later one was ``rolled_back``. With
    ``confirm_by_timestamp_s`` it waits: unless it is confirmed, ``former`` is in force again then.
    """

    source: str
    file: str
    author: str
    at_timestamp_s: float
    rolled_back: bool = False
    confirm_by_timestamp_s: float | None = None
    former: str = ""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The whole gateway at one moment. ``notices`` are sentences that an operator should read.

    ``api_strangers``: requests over TCP without a token that is known, since the daemon started.
    """

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
    change: ChangeStatus | None = None
    api_strangers: int = 0
