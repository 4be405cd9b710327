"""What the API needs of the gateway: the seam between HTTP and the daemon.

Everything is called in the event loop's thread. Who asks is the API's business; the name of
whoever changes something goes along as ``author``. ``match`` are the revisions that the caller has
seen: when the desired state is another one by the time that the change has its turn, it is refused
by ``StaleError`` (``core.wish.refuse_stale``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from lb_xdp.core.event import Event, EventFilter
from lb_xdp.core.flow_list import FlowList, Wanted
from lb_xdp.core.override import Override, Overrides, Subject
from lb_xdp.core.preview import Preview
from lb_xdp.core.snapshot import Snapshot
from lb_xdp.core.wish import Match, Outcome, ReloadWish


class Controller(Protocol):
    """The gateway. Every method raises LbError where something cannot be done."""

    async def snapshot(self) -> Snapshot:
        """Return the gateway as it is now; may read maps, must be quick."""
        ...

    def revision(self) -> str:
        """Return what the desired state is called: another one for other file or overrides."""
        ...

    def names(self) -> Mapping[str, Sequence[str]]:
        """Return the backends' names by service, those that linger included; must be quick."""
        ...

    def pool_names(self) -> Sequence[str]:
        """Return the names of all pools in use; must be quick."""
        ...

    async def events(self, wanted: EventFilter, wait_s: float) -> list[Event]:
        """Return events that are wanted, oldest first; if there is none, wait for one."""
        ...

    def count_stranger(self) -> None:
        """Take in that a request over TCP had no token that is known."""
        ...

    def overrides(self) -> Overrides:
        """Return what was asked for at run time and still holds."""
        ...

    async def set_overrides(self, *overrides: Override, match: Match) -> None:
        """Let these hold, all or none; one about the same subject is replaced.

        Raises UnknownNameError, UnfitOverrideError, StoreError.
        """
        ...

    async def clear_overrides(
        self, *subjects: Subject, author: str, match: Match
    ) -> Sequence[Override]:
        """Let the file hold again, and return what held; a subject without one is passed over.

        Raises StoreError.
        """
        ...

    async def reload(self, wish: ReloadWish) -> Outcome:
        """Go to another configuration, all of it or nothing."""
        ...

    async def plan(self, text: str | None, source: str) -> Preview:
        """Return what a configuration would change; None stands for the daemon's own file."""
        ...

    async def confirm(self, author: str, match: Match) -> str:
        """Keep a reload that waits for it; return a sentence. Raises NotNowError."""
        ...

    async def roll_back(self, author: str, match: Match) -> str:
        """Undo a reload that waits for confirmation; return a sentence. Raises NotNowError."""
        ...

    async def flows(self, wanted: Wanted) -> FlowList:
        """Return recorded flows; reads the whole flow table."""
        ...

    async def detach(self, match: Match) -> None:
        """Remove program and pins. The daemon may end only after this has returned."""
        ...
