"""Backends as a table for each service, and what was asked of them in words."""

from __future__ import annotations

from collections.abc import Iterable

from lb_xdp.cli.screen import Column, Screen
from lb_xdp.cli.status_table import explanation, layers
from lb_xdp.core.snapshot import BackendStatus, ServiceStatus

_COLUMNS = (
    *(Column("backend", folds=True), Column("address", folds=True)),
    *map(Column, ("state", "admin", "health")),
    *(Column(heading, right=True) for heading in ("weight", "recorded", "connections")),
)


def render(services: Iterable[ServiceStatus], *, now_s: float, columns: int) -> str:
    """Return the backends as text that ends in a newline; ``now_s`` is the time of day."""
    screen = Screen(columns, colour=False)
    for number, service in enumerate(services):
        if number:
            screen.line()
        screen.line(service.name)
        screen.table(_COLUMNS, list(map(_row, service.backends)), gap=2, indent=2)
        for backend in service.backends:
            _print_words(screen, backend, now_s)
    return screen.text()


def _row(backend: BackendStatus) -> tuple[str, ...]:
    return (
        backend.name,
        backend.address,
        backend.state,
        backend.admin,
        backend.health,
        str(backend.weight),
        str(backend.recorded),
        "-" if backend.connections is None else str(backend.connections),
    )


def _print_words(screen: Screen, backend: BackendStatus, now_s: float) -> None:
    """Print what is special about a backend: why its state is so, and what was asked, and why."""
    if not backend.overrides and backend.state == "up":
        return
    screen.line(explanation(backend, now_s), indent=2)
    if backend.overrides:
        screen.line("  ", layers(backend, now_s), indent=2)
