"""Sees what has changed since it last looked, and tells it as events, each with its cause.

Owns the comparison of one moment with the next, and how an event reads in the log. It refuses to
decide anything and to keep events: the journal does.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import NamedTuple

from lb_xdp.core.desired import BackendId
from lb_xdp.core.event import Event, EventKind
from lb_xdp.core.model import BackendKey, Config, ServiceKey
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


See = Callable[[ServiceStanding], Mapping[BackendKey, Seen]]
"""From a service's standing to its backends as they are now."""


class Witness:
    """Looks after every cycle; ``record`` takes what it tells."""

    def __init__(self, record: Record) -> None:
        self._record = record
        self._known: dict[ServiceKey, tuple[ServiceStanding, Mapping[BackendKey, State]]] = {}

    def look(
        self,
        services: Mapping[ServiceKey, ServiceStanding],
        touched: Collection[ServiceKey],
        see: See,
        timestamp_s: float,
    ) -> None:
        """Tell what is another than when it last looked.

        A service that has the very standing that it had is looked at only if it is ``touched``: a
        record of a backend of its has been written.
        """
        known = {}
        for key, standing in services.items():
            before = self._known.get(key)
            if before is not None and before[0] is standing and key not in touched:
                known[key] = before
            else:
                seen = see(standing)
                self._compare(before, standing, seen, timestamp_s)
                known[key] = (standing, {backend: one.state for backend, one in seen.items()})
        self._known = known

    def states(self) -> dict[tuple[str, str], State]:
        """Return the state of every backend, by the names of service and backend."""
        return {
            (standing.service.name, backend.name): states[backend.key]
            for standing, states in self._known.values()
            for backend in standing.service.pool.backends
            if backend.key in states
        }

    def _compare(
        self,
        before: tuple[ServiceStanding, Mapping[BackendKey, State]] | None,
        standing: ServiceStanding,
        seen: Mapping[BackendKey, Seen],
        timestamp_s: float,
    ) -> None:
        states = before[1] if before else {}
        for event in _service_events(before[0] if before else None, standing, timestamp_s):
            self._record(event)
        for key, one in seen.items():
            if key in states and states[key] is not one.state:
                self._record(_state_event(states[key], one, timestamp_s))


def _state_event(before: State, seen: Seen, timestamp_s: float) -> Event:
    cause, author, duration_s = seen.cause()
    return Event(
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


def _service_events(
    before: ServiceStanding | None, standing: ServiceStanding, timestamp_s: float
) -> Iterator[Event]:
    service = standing.service
    panicked = before is not None and before.panic
    if standing.panic and not panicked:
        yield Event(EventKind.PANIC, timestamp_s, service.name, cause=panic_sentence(service))
    elif panicked and not standing.panic:
        cause = "a backend can take new flows again"
        yield Event(EventKind.PANIC_OVER, timestamp_s, service.name, cause=cause)
    former = before.priority if before else standing.priority
    if former != standing.priority:
        least = service.pool.min_active
        cause = (
            f"fewer than {least} backends of higher priority are healthy"
            if standing.priority > former
            else f"at least {least} backends of higher priority are healthy"
        )
        priorities = (str(former), str(standing.priority))
        yield Event(EventKind.PRIORITY, timestamp_s, service.name, "", *priorities, cause=cause)


def membership_events(before: Config, after: Config, timestamp_s: float) -> list[Event]:
    """Return what a reload adds and takes away, both in the file's words."""
    both = set(map(id, before.services)) & set(map(id, after.services))
    names = [
        {
            BackendId(service.key, backend.key): (service.name, backend.name)
            for service in config.services
            if id(service) not in both
            for backend in service.pool.backends
        }
        for config in (before, after)
    ]
    removed = [who for identity, who in names[0].items() if identity not in names[1]]
    added = [who for identity, who in names[1].items() if identity not in names[0]]
    kinds = [(EventKind.BACKEND_REMOVED, who) for who in removed]
    kinds += [(EventKind.BACKEND_ADDED, who) for who in added]
    return [Event(kind, timestamp_s, *who) for kind, who in kinds]
