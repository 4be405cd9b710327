"""Waiting until a drained backend has no flow left, and saying meanwhile how many there are.

What counts are flow records, as of a look at the flow table that began after the drain. It refuses
to judge flows by itself: where records cannot tell, the daemon says so (``hidden``).
"""

from __future__ import annotations

import time

import click

from lb_xdp.api.client import Client
from lb_xdp.cli.arguments import BackendPath
from lb_xdp.core.durations import format_duration
from lb_xdp.core.snapshot import Admin, BackendStatus, Snapshot
from lb_xdp.errors import LbError

POLL_S = 0.5
WHY_PERHAPS = (
    "the service does not record every flow: one that has been silent since the drain is not known "
    "until gateway.flow_table.settle is over, 15 min unless set"
)


def wait_until_empty(
    client: Client, path: BackendPath, *, since_timestamp_s: float, timeout_s: float
) -> None:
    """Return when no flow is left. Raises LbError after the timeout, or when the drain ends."""
    deadline_s = time.monotonic() + timeout_s
    said, explained = "", False
    while True:
        snapshot = client.snapshot()
        backend = _find(snapshot, path)
        if backend is None or _is_empty(snapshot, backend, since_timestamp_s):
            click.echo(f"{path}: no flow is left")
            return
        _refuse_end_of_drain(backend, path)
        sentence = f"{path}: {_left(backend)}"
        if sentence != said:
            click.echo(sentence)
            said = sentence
        if backend.hidden and not explained:
            click.echo(f"{path}: {WHY_PERHAPS}")
            explained = True
        if time.monotonic() >= deadline_s:
            raise LbError(
                f"after {format_duration(timeout_s)} {_left(backend)} on {path}; it stays drained: "
                f"wait again, or cut them: lb-xdp backend disable --cut {path}"
            )
        time.sleep(min(POLL_S, max(deadline_s - time.monotonic(), 0)))


def _find(snapshot: Snapshot, path: BackendPath) -> BackendStatus | None:
    """Return the backend; None when it has left the gateway for good."""
    return next(
        (
            backend
            for service in snapshot.services
            for backend in service.backends
            if (service.name, backend.name) == path
        ),
        None,
    )


def _is_empty(snapshot: Snapshot, backend: BackendStatus, since_timestamp_s: float) -> bool:
    looked = snapshot.datapath.flow_table.looked_timestamp_s > since_timestamp_s
    return looked and not backend.recorded and not backend.hidden and not backend.weight


def _refuse_end_of_drain(backend: BackendStatus, path: BackendPath) -> None:
    if backend.admin is Admin.READY:
        raise LbError(f"{path} is drained no more: somebody enabled it, or the time was over")


def _left(backend: BackendStatus) -> str:
    """Return ``2 recorded flows, 1 connection are left``; what nobody counts is left out."""
    parts = [_count(backend.recorded, "recorded flow")]
    if backend.connections is not None:
        parts.append(_count(backend.connections, "connection"))
    if backend.hidden:
        parts.append("perhaps silent flows")
    return f"{', '.join(parts)} left"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
