"""Sees what has changed since it last looked, and tells it as events, each with its cause.

Owns the comparison of one moment with the next, and how an event reads in the log. It refuses to
decide anything and to keep events: the journal does.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from lb_xdp.core.desired import BackendId
from lb_xdp.core.event import Event, EventKind
from lb_xdp.core.model import Config, ServiceKey
from lb_xdp.core.snapshot import State
from lb_xdp.core.standing import ServiceStanding, panic_sentence

_log = logging.getLogger(__name__)

Record = Callable[[Event], None]

_ERRORS = {EventKind.PANIC}
_WARNINGS = {EventKind.PRIORITY, EventKind.RESOLVE_FAILED, EventKind.TROUBLE}


def log_event(event: Event) -> None:
    """Write an event to the log; how loudly, its kind says."""
    level = logging.INFO
    if event.kind in _ERRORS:
        level = logging.ERROR
    elif event.kind in _WARNINGS or event.after == State.DOWN:
        level = logging.WARNING
    _log.log(level, "%s", sentence(event), extra=_fields(event))


def sentence(event: Event) -> str:
    """Return an event as ``web/web1: backend_state up -> down: connection refused``."""
    who = "/".join(filter(None, (event.service, event.backend)))
    change = " -> ".join(filter(None, (event.before, event.after)))
    head = " ".join(filter(None, (event.kind.value, change)))
    by = f" (by {event.author})" if event.author else ""
    return ": ".join(filter(None, (who, head, event.cause))) + by


def _fields(event: Event) -> dict[str, str]:
    pairs = {"event": event.kind.value, "service": event.service, "backend": event.backend}
    return {key: value for key, value in pairs.items() if value}


class Seen(NamedTuple):
    """One backend at one moment: its names, its state and why it is so.

    ``cause`` returns that in words, who wanted it, and how long the probe took that says so.
    """

    service: str
    backend: str
    state: State
    cause: Callable[[], tuple[str, str, float | None]]


class Witness:
    """Looks after every cycle; ``record`` takes what it tells."""

    def __init__(self, record: Record) -> None:
        self._record = record
        self._states: dict[BackendId, State] = {}
        self._panics: dict[ServiceKey, bool] = {}
        self._priorities: dict[ServiceKey, int] = {}

    def look(self, backends: Mapping[BackendId, Seen], timestamp_s: float) -> None:
        """Tell which backends are in another state than when it last looked."""
        for identity, seen in backends.items():
            before = self._states.get(identity)
            if before is not None and before is not seen.state:
                cause, author, duration_s = seen.cause()
                self._record(
                    Event(
                        EventKind.BACKEND_STATE,
                        timestamp_s,
                        seen.service,
                        seen.backend,
                        before.value,
                        seen.state.value,
                        cause,
                        author,
                        duration_s,
                    )
                )
        self._states = {identity: seen.state for identity, seen in backends.items()}

    def look_at_services(
        self, services: Mapping[ServiceKey, ServiceStanding], timestamp_s: float
    ) -> None:
        """Tell which services panic, and which have other priorities at work."""
        for key, standing in services.items():
            for event in self._service_events(key, standing, timestamp_s):
                self._record(event)
        self._panics = {key: standing.panic for key, standing in services.items()}
        self._priorities = {key: standing.priority for key, standing in services.items()}

    def _service_events(
        self, key: ServiceKey, standing: ServiceStanding, timestamp_s: float
    ) -> Iterator[Event]:
        service = standing.service
        if standing.panic and not self._panics.get(key, False):
            yield Event(EventKind.PANIC, timestamp_s, service.name, cause=panic_sentence(service))
        elif self._panics.get(key, False) and not standing.panic:
            cause = "a backend can take new flows again"
            yield Event(EventKind.PANIC_OVER, timestamp_s, service.name, cause=cause)
        before = self._priorities.get(key, standing.priority)
        if before != standing.priority:
            least = service.pool.min_active
            cause = (
                f"fewer than {least} backends of higher priority are healthy"
                if standing.priority > before
                else f"{least} backends of higher priority are healthy"
            )
            priorities = (str(before), str(standing.priority))
            yield Event(EventKind.PRIORITY, timestamp_s, service.name, "", *priorities, cause=cause)


def membership_events(before: Config, after: Config, timestamp_s: float) -> list[Event]:
    """Return what a reload adds and takes away, both in the file's words."""
    names = [
        {
            BackendId(service.key, backend.key): (service.name, backend.name)
            for service, backend in config.backends()
        }
        for config in (before, after)
    ]
    removed = [who for identity, who in names[0].items() if identity not in names[1]]
    added = [who for identity, who in names[1].items() if identity not in names[0]]
    kinds = [(EventKind.BACKEND_REMOVED, who) for who in removed]
    kinds += [(EventKind.BACKEND_ADDED, who) for who in added]
    return [Event(kind, timestamp_s, *who) for kind, who in kinds]
