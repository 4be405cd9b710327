"""What happens is logged, kept in the journal, and counted towards availability: in one place.

Owns the order of these three, and what the daemon's own beginning and end mean for them. It refuses
to make events, but for the states that backends are found in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from lb_xdp.core.availability import Availability, BackendName
from lb_xdp.core.event import Event, EventFilter, EventKind
from lb_xdp.core.snapshot import Share, Snapshot, State
from lb_xdp.journal import Journal
from lb_xdp.witness import log_event


class Chronicle:
    """Belongs to the event loop. `record` is what makers of events are given."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._availability = Availability()
        self._availability.replay(journal.replay(), journal.last_alive_timestamp_s)

    def close(self) -> None:
        """Have everything written."""
        self._journal.close()

    def record(self, event: Event) -> None:
        """Take in what happened."""
        log_event(event)
        self._keep(event)

    def find(self, states: Mapping[tuple[str, str], State], timestamp_s: float) -> None:
        """Take in the states that backends have; what is new of them goes into the journal."""
        for names, state in states.items():
            name = BackendName(*names)
            if state is not self._availability.state(name):
                found = Event(EventKind.BACKEND_STATE, timestamp_s, *name, after=state.value)
                self._keep(replace(found, cause="found so"))

    def _keep(self, event: Event) -> None:
        self._journal.record(event)
        self._availability.on_event(event)

    async def events(self, wanted: EventFilter, wait_s: float) -> list[Event]:
        """Return events that are wanted; if there is none, wait for one."""
        return await self._journal.select(wanted, wait_s=wait_s)

    def shares(self, service: str, backend: str, now_s: float) -> dict[str, Share]:
        """Return how much of the time a backend was up, by window."""
        return self._availability.shares(BackendName(service, backend), now_s)

    def completed(self, snapshot: Snapshot) -> Snapshot:
        """Return a snapshot that says what is amiss with the journal."""
        trouble = filter(None, [self._journal.trouble])
        return replace(snapshot, notices=(*snapshot.notices, *trouble))
