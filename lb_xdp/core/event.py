"""What happened: the values that the journal keeps and ``lb-xdp events`` shows.

An event is one change of state with its cause. This module owns the vocabulary; it refuses to know
who makes events (the reconciler, the daemon) and where they are kept (``lb_xdp.journal``).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


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
