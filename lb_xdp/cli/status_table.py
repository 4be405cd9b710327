"""A snapshot as one screen of text, 80 columns or more.

This module owns the picture. It refuses to own the terminal: width and colour are arguments, and
the time is the snapshot's, so that the same snapshot always gives the same text. Only ASCII is
drawn. Large numbers are rounded; JSON has them exactly.
"""

from __future__ import annotations

from ipaddress import ip_address
from itertools import pairwise

from lb_xdp.cli.screen import Column, Screen, Span
from lb_xdp.core.endpoint import format_service
from lb_xdp.core.snapshot import (
    Admin,
    BackendStatus,
    Health,
    ServiceStatus,
    Snapshot,
    State,
    Verdict,
)

WIDE_COLUMNS = 100
REASONS_SHOWN = 6
EXACT_BELOW = 1_000_000

STATE_STYLES = {
    State.UP: "green",
    State.DOWN: "bold red",
    State.DRAIN: "yellow",
    State.MAINT: "yellow",
    State.UNKNOWN: "magenta",
}
HEALTH_STYLES = {Health.UP: "green", Health.DOWN: "bold red", Health.UNKNOWN: "magenta"}


def render(snapshot: Snapshot, *, columns: int, colour: bool) -> str:
    """Return the screen as text that ends in a newline, with ANSI colours if ``colour``."""
    screen = Screen(columns, colour=colour)
    _print_gateway(screen, snapshot)
    _print_alarms(screen, snapshot)
    for service in snapshot.services:
        _print_service(screen, snapshot, service)
    _print_reasons(screen, snapshot)
    return screen.text()


def _print_gateway(screen: Screen, snapshot: Snapshot) -> None:
    """Print who this is and what is loaded where."""
    ready = ("ready", "green") if snapshot.ready else ("NOT READY", "bold red")
    age = duration(snapshot.timestamp_s - snapshot.started_timestamp_s)
    about = f"  lb-xdp {snapshot.version}  pid {snapshot.pid}  up {age}"
    screen.line((snapshot.gateway, "bold"), "  ", ready, about)
    loaded = duration(snapshot.timestamp_s - snapshot.last_reload.timestamp_s)
    verb = "loaded" if snapshot.last_reload.success else "refused"
    screen.line(f"config    {snapshot.config_source}  {verb} {loaded} ago")
    if snapshot.change is not None and snapshot.change.confirm_by_timestamp_s is not None:
        left = duration(snapshot.change.confirm_by_timestamp_s - snapshot.timestamp_s)
        words = f"change    waits to be confirmed, else {snapshot.change.former} is back in {left}"
        screen.line((words, "bold yellow"))
    datapath = snapshot.datapath
    programs = ", ".join(f"{item.interface} {item.mode} id {item.id}" for item in datapath.programs)
    place = f"  netns {datapath.netns}  generation {datapath.generation}"
    screen.line("datapath  ", programs or ("NOT ATTACHED", "bold red"), place)
    flows = datapath.flow_table
    if flows.capacity:
        share = percent(flows.entries, flows.capacity)
        screen.line(f"flows     {flows.entries} recorded, {share} of the table")


def _print_alarms(screen: Screen, snapshot: Snapshot) -> None:
    """Print a refused reload and the notices so that nobody misses them."""
    reload = snapshot.last_reload
    if reload.success and not snapshot.notices:
        return
    screen.line()
    if not reload.success:
        ago = duration(snapshot.timestamp_s - reload.timestamp_s)
        words = f"! RELOAD REFUSED {ago} ago, the former configuration stays in force:"
        screen.line((words, "bold red"))
        for error in reload.errors:
            screen.line((error, "red"), indent=4)
    for notice in snapshot.notices:
        screen.line((f"! {notice}", "bold yellow"))


def _print_service(screen: Screen, snapshot: Snapshot, service: ServiceStatus) -> None:
    """Print a service, its backends, and in words what is special about some of them.

    Where file, overrides and what is observed differ, all three are shown.
    """
    backends = service.backends
    up = sum(backend.state is State.UP for backend in backends)
    style = "green" if up == len(backends) else "yellow" if up else "bold red"
    address = format_service(ip_address(service.vip), service.port, service.protocol)
    where = f"  {address}  {service.mode}  "
    affinity = "" if service.affinity == "none" else f" by {service.affinity}"
    how = f"{service.algorithm}{affinity}  pool {service.pool}  "
    screen.line()
    screen.line((service.name, "bold"), where, how, (f"{up} of {len(backends)} up", style))
    if service.why_tracked:
        screen.line(f"  every flow is recorded: {service.why_tracked}")
    _print_backends(screen, backends, snapshot.datapath.ring_slots)
    for backend in backends:
        differs = _differs(backend)
        if backend.state is not State.UP or differs:
            sentence = explanation(backend, snapshot.timestamp_s)
            screen.line((sentence, STATE_STYLES[backend.state]), indent=2)
        if differs:
            screen.line(layers(backend, snapshot.timestamp_s), indent=4)


def _print_backends(screen: Screen, backends: tuple[BackendStatus, ...], ring_slots: int) -> None:
    """Print the table of a service's backends; only names and addresses may fold.

    In 80 columns there is no room to say ``ready`` of each: admin is shown where one is not.
    """
    wide = screen.columns >= WIDE_COLUMNS
    admin = wide or any(backend.admin is not Admin.READY for backend in backends)
    columns = [Column("backend", folds=True), Column("address", folds=True)]
    columns += map(Column, ("state", "admin", "health") if admin else ("state", "health"))
    numbers = ("weight", "share", "packets", "bytes", "flows")
    columns += [Column(heading, right=True) for heading in numbers]
    rows = [_row(backend, ring_slots, admin=admin) for backend in backends]
    screen.table(columns, rows, gap=2 if wide else 1, indent=2)


def _row(backend: BackendStatus, ring_slots: int, *, admin: bool) -> list[Span]:
    return [
        # A backend without a name is called by its address: once is enough.
        backend.name if backend.name != backend.address else "",
        backend.address,
        (backend.state, STATE_STYLES[backend.state]),
        *([backend.admin] if admin else []),
        (backend.health, HEALTH_STYLES.get(backend.health, "")),
        str(backend.weight),
        percent(backend.slots, ring_slots),
        quantity(backend.packets),
        quantity(backend.bytes),
        quantity(backend.flows),
    ]


def explanation(backend: BackendStatus, now_s: float) -> str:
    """Return ``web3: down for 12s: connection refused``."""
    since = duration(now_s - backend.since_timestamp_s)
    sentence = f"{backend.name}: {backend.state} for {since}"
    return f"{sentence}: {backend.detail}" if backend.detail else sentence


def _differs(backend: BackendStatus) -> bool:
    """Say whether what counts for a backend is something else than its line in the file."""
    configured = backend.configured_weight
    return bool(backend.overrides) or configured not in {None, backend.weight}


def layers(backend: BackendStatus, now_s: float) -> str:
    """Return ``file: weight 100; override: drain by uid 0, ends in 5m; now: drain, weight 0``."""
    parts = [f"file: weight {backend.configured_weight}"]
    for override in backend.overrides:
        what = f"weight {override.value}" if override.kind == "weight" else override.value
        asked = f"override: {what} by {override.author}"
        if override.expires_timestamp_s is not None:
            asked += f", ends in {duration(override.expires_timestamp_s - now_s)}"
        parts.append(asked)
    return "; ".join([*parts, f"now: {backend.state}, weight {backend.weight}"])


def _print_reasons(screen: Screen, snapshot: Snapshot) -> None:
    """Print what became of most packets, and of every packet that was dropped."""
    reasons = [item for item in snapshot.datapath.reasons if item.packets]
    reasons.sort(key=lambda item: -item.packets)
    dropped = [item for item in reasons[REASONS_SHOWN:] if item.verdict is Verdict.DROP]
    if not reasons:
        return
    total = sum(item.packets for item in reasons)
    columns = [Column("packets", right=True), Column("share", right=True), Column("verdict")]
    columns.append(Column("reason", folds=True))
    rows: list[list[Span]] = [
        [
            quantity(item.packets),
            percent(item.packets, total),
            (item.verdict, "red" if item.verdict is Verdict.DROP else ""),
            item.reason,
        ]
        for item in reasons[:REASONS_SHOWN] + dropped
    ]
    screen.line()
    screen.line(("packets", "bold"))
    screen.table(columns, rows, gap=2, indent=2)


def quantity(value: int) -> str:
    """Return ``value`` in at most seven characters: exact below a million, then as 12.3M."""
    if value < EXACT_BELOW:
        return str(value)
    scaled, unit = float(value), ""
    for unit in "kMGTPE":  # noqa: B007 - the unit where the loop ends is the result
        scaled /= 1000
        if scaled < 999.95:  # noqa: PLR2004 - above it rounds to 1000.0
            break
    return f"{scaled:.1f}{unit}"


def percent(part: int, whole: int) -> str:
    """Return the share with one decimal, a dash where there is no whole; little is not nothing."""
    if not whole:
        return "-"
    share = 100 * part / whole
    return "<0.1%" if 0 < share < 0.1 else f"{share:.1f}%"  # noqa: PLR2004 - the last decimal shown


def duration(seconds: float) -> str:
    """Return the two largest units: 12s, 3m20s, 3h12m, 5d4h."""
    left = max(0, int(seconds))
    units = (("d", 86_400), ("h", 3600), ("m", 60), ("s", 1))
    for (large, size), (small, part) in pairwise(units):
        if left >= size:
            return f"{left // size}{large}{left % size // part}{small}"
    return f"{left}s"
