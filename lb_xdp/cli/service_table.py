"""Services as a few lines of text each: what they are, what they remember, whom they may ask."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address

from lb_xdp.cli.screen import Column, Screen
from lb_xdp.cli.table import text_table
from lb_xdp.core.endpoint import format_service
from lb_xdp.core.snapshot import BackendStatus, Records, ServiceStatus, State

_FACTS = (Column(), Column(folds=True))
_BACKENDS = (
    *(Column("backend", folds=True), Column("address", folds=True), Column("state")),
    *(Column(heading, right=True) for heading in ("weight", "slots", "recorded", "connections")),
)


def render(services: Iterable[ServiceStatus], *, columns: int) -> str:
    """Return the services as text that ends in a newline."""
    screen = Screen(columns, colour=False)
    for number, service in enumerate(services):
        if number:
            screen.line()
        screen.line(service.name)
        screen.table(_FACTS, _facts(service), gap=2, indent=2)
        screen.table(_BACKENDS, list(map(_row, service.backends)), gap=2, indent=2)
    return screen.text()


def summary(services: Iterable[ServiceStatus], *, columns: int) -> str:
    """Return a line for each service, as text that ends in a newline."""
    return text_table(
        ("service", "address", "mode", "algorithm", "pool", "up", "of"),
        map(_line, services),
        columns=columns,
        numbers=("up", "of"),
        folding=("service", "address", "pool"),
    )


def _line(service: ServiceStatus) -> tuple[str, ...]:
    up = sum(backend.state is State.UP for backend in service.backends)
    what = (service.name, _address(service), service.mode, service.algorithm, service.pool)
    return (*what, str(up), str(len(service.backends)))


def _address(service: ServiceStatus) -> str:
    return format_service(ip_address(service.vip), service.port, service.protocol)


def _facts(service: ServiceStatus) -> list[tuple[str, str]]:
    return [
        ("address", _address(service)),
        ("mode", service.mode),
        ("algorithm", service.algorithm),
        ("affinity", _affinity(service)),
        ("records", _records(service)),
        ("no backend", service.no_backend),
    ]


def _affinity(service: ServiceStatus) -> str:
    if service.affinity == "none":
        return "none"
    return f"{service.affinity}: a client's new flows follow its earlier ones"


def _records(service: ServiceStatus) -> str:
    if service.records is Records.ALL:
        return f"every flow: {service.why_tracked}"
    if service.records is Records.NONE:
        return "none: session.flows is none"
    if not service.unsettled_slots + service.marked_slots:
        return "none now: the ring alone places every flow"
    return (
        f"flows on {service.unsettled_slots + service.marked_slots} slots: "
        f"{service.unsettled_slots} changed hands a while ago, {service.marked_slots} may still "
        "have records"
    )


def _row(backend: BackendStatus) -> tuple[str, ...]:
    return (
        backend.name,
        backend.address,
        backend.state,
        str(backend.weight),
        str(backend.slots),
        str(backend.recorded),
        _connections(backend),
    )


def _connections(backend: BackendStatus) -> str:
    """Return ``12 of 100``; a dash where nobody counts."""
    if backend.connections is None:
        return "-"
    if backend.max_connections is None:
        return str(backend.connections)
    return f"{backend.connections} of {backend.max_connections}"
