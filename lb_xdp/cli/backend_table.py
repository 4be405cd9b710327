"""Backends as a table for each service, and what was asked of them in words."""

from __future__ import annotations

from collections.abc import Iterable
from io import StringIO

from rich.console import Console
from rich.padding import Padding
from rich.table import Table

from lb_xdp.cli.status_table import duration, layers
from lb_xdp.core.snapshot import BackendStatus, ServiceStatus


def render(services: Iterable[ServiceStatus], *, now_s: float, columns: int) -> str:
    """Return the backends as text that ends in a newline; ``now_s`` is the time of day."""
    console = Console(file=StringIO(), width=columns, markup=False, highlight=False, emoji=False)
    with console.capture() as capture:
        for number, service in enumerate(services):
            if number:
                console.print()
            console.print(service.name)
            console.print(Padding(_table(service.backends), (0, 0, 0, 2)))
            for backend in service.backends:
                for line in _words(backend, now_s):
                    console.print(Padding(line, (0, 0, 0, 2)))
    return "".join(f"{line.rstrip()}\n" for line in capture.get().splitlines())


def _table(backends: Iterable[BackendStatus]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for heading in ("backend", "address"):
        table.add_column(heading, overflow="fold")
    for heading in ("state", "admin", "health"):
        table.add_column(heading, no_wrap=True)
    for heading in ("weight", "recorded", "connections"):
        table.add_column(heading, justify="right", no_wrap=True)
    for backend in backends:
        table.add_row(
            backend.name,
            backend.address,
            backend.state,
            backend.admin,
            backend.health,
            str(backend.weight),
            str(backend.recorded),
            "-" if backend.connections is None else str(backend.connections),
        )
    return table


def _words(backend: BackendStatus, now_s: float) -> Iterable[str]:
    """Yield what is special about a backend: why its state is so, and what was asked, and why."""
    if not backend.overrides and backend.state == "up":
        return
    since = duration(now_s - backend.since_timestamp_s)
    detail = f": {backend.detail}" if backend.detail else ""
    yield f"{backend.name}: {backend.state} for {since}{detail}"
    if backend.overrides:
        yield f"  {layers(backend, now_s)}"
