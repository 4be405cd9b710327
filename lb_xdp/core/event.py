"""What happened: the values that the journal keeps and ``lb-xdp events`` shows.

An event is one change of state with its cause. This module owns the vocabulary; it refuses to know
who makes events (the reconciler, the daemon) and where they are kept (``lb_xdp.journal``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class EventKind(StrEnum):
    """What changed. The names are part of the API; add, never rename."""

    STARTED = "started"
    STOPPED = "stopped"
    RELOADED = "reloaded"
    RELOAD_REFUSED = "reload_refused"
    CONFIRMED = "confirmed"
    ROLLED_BACK = "rolled_back"
    BACKEND_STATE = "backend_state"
    BACKEND_ADDED = "backend_added"
    BACKEND_REMOVED = "backend_removed"
    BACKEND_FORGOTTEN = "backend_forgotten"
    OVERRIDE_SET = "override_set"
    OVERRIDE_CLEARED = "override_cleared"
    OVERRIDE_EXPIRED = "override_expired"
    PRIORITY = "priority"
    PANIC = "panic"
    PANIC_OVER = "panic_over"
    SUSPECTED = "suspected"
    EJECTED = "ejected"
    RETURNED = "returned"
    FLAPPING = "flapping"
    RESOLVED = "resolved"
    RESOLVE_FAILED = "resolve_failed"
    TROUBLE = "trouble"


@dataclass(frozen=True, slots=True)
class Event:
    """One change. ``number`` counts up for the gateway and never repeats; the journal gives it.

    ``before`` and ``after`` are states in the words of the kind, empty where it has none. ``cause``
    says in words why: what a probe was answered, who asked for it. ``duration_s`` is how long that
    took, where it is a probe's.
    """

    kind: EventKind
    timestamp_s: float
    service: str = ""
    backend: str = ""
    before: str = ""
    after: str = ""
    cause: str = ""
    author: str = ""
    duration_s: float | None = None
    number: int = 0


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Which events are wanted; an empty condition is none.

    ``after`` is a number: only later ones. ``since_timestamp_s`` is included. ``newest`` bounds how
    many there may be: the last ones of those that fit.
    """

    after: int = 0
    since_timestamp_s: float = 0.0
    service: str = ""
    backend: str = ""
    kinds: frozenset[EventKind] = frozenset()
    newest: int = 100

    def fits(self, event: Event) -> bool:
        """Say whether an event is wanted, but for ``newest``."""
        return (
            event.number > self.after
            and event.timestamp_s >= self.since_timestamp_s
            and self.service in {"", event.service}
            and self.backend in {"", event.backend}
            and (not self.kinds or event.kind in self.kinds)
        )


def to_document(event: Event) -> dict[str, object]:
    """Return an event as JSON has it, in the journal and the API: what says nothing is left out."""
    document: dict[str, object] = {"number": event.number, "timestamp_s": event.timestamp_s}
    document["kind"] = event.kind.value
    values = {name: getattr(event, name) for name in _WORDS}
    document |= {name: value for name, value in values.items() if value}
    if event.duration_s is not None:
        document["duration_s"] = event.duration_s
    return document


def from_document(document: Mapping[str, Any]) -> Event:
    """Return the event of a document. Raises KeyError, TypeError, ValueError for anything else."""
    duration_s = document.get("duration_s")
    return Event(
        kind=EventKind(document["kind"]),
        timestamp_s=float(document["timestamp_s"]),
        duration_s=None if duration_s is None else float(duration_s),
        number=int(document["number"]),
        **{name: str(document.get(name, "")) for name in _WORDS},
    )


_WORDS = ("service", "backend", "before", "after", "cause", "author")
