"""Services as a few lines of text each: what they are, what they remember, whom they may ask."""

from __future__ import annotations

from collections.abc import Iterable
from io import StringIO
from ipaddress import ip_address

from rich.console import Console
from rich.padding import Padding
from rich.table import Table

from lb_xdp.cli.table import text_table
from lb_xdp.core.model import Affinity, Protocol, ServiceKey
from lb_xdp.core.snapshot import BackendStatus, Records, ServiceStatus, State


def render(services: Iterable[ServiceStatus], *, columns: int) -> str:
    """Return the services as text that ends in a newline."""
    console = Console(file=StringIO(), width=columns, markup=False, highlight=False, emoji=False)
    with console.capture() as capture:
        for number, service in enumerate(services):
            if number:
                console.print()
            console.print(service.name)
            console.print(Padding(_facts(service), (0, 0, 0, 2)))
            console.print(Padding(_backends(service.backends), (0, 0, 0, 2)))
    return "".join(f"{line.rstrip()}\n" for line in capture.get().splitlines())


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
    what = (service.name, str(_key(service)), service.mode, service.algorithm, service.pool)
    return (*what, str(up), str(len(service.backends)))


def _key(service: ServiceStatus) -> ServiceKey:
    return ServiceKey(ip_address(service.vip), service.port, Protocol(service.protocol))


def _facts(service: ServiceStatus) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("address", str(_key(service)))
    table.add_row("mode", service.mode)
    table.add_row("algorithm", service.algorithm)
    table.add_row("affinity", _affinity(service))
    table.add_row("records", _records(service))
    table.add_row("no backend", service.no_backend)
    return table


def _affinity(service: ServiceStatus) -> str:
    if service.affinity == Affinity.NONE:
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


def _backends(backends: Iterable[BackendStatus]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for heading in ("backend", "address"):
        table.add_column(heading, overflow="fold")
    table.add_column("state", no_wrap=True)
    for heading in ("weight", "slots", "recorded", "connections"):
        table.add_column(heading, justify="right", no_wrap=True)
    for backend in backends:
        table.add_row(
            backend.name,
            backend.address,
            backend.state,
            str(backend.weight),
            str(backend.slots),
            str(backend.recorded),
            _connections(backend),
        )
    return table


def _connections(backend: BackendStatus) -> str:
    """Return ``12 of 100``; a dash where nobody counts."""
    if backend.connections is None:
        return "-"
    if backend.max_connections is None:
        return str(backend.connections)
    return f"{backend.connections} of {backend.max_connections}"
