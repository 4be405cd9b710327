"""What the API may ask of the gateway: the Controller behind it (``api/controller.py``).

Owns that what changes something waits for its turn, and is refused if another change came first.
It refuses to do any of it: the parts that the daemon hands in do. Forwarding needs none of this.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from lb_xdp.changes import Changes
from lb_xdp.chronicle import Chronicle
from lb_xdp.confirmation import Confirmation
from lb_xdp.core.event import Event, EventFilter
from lb_xdp.core.flow_list import FlowList, Wanted
from lb_xdp.core.override import Override, Overrides, Subject
from lb_xdp.core.preview import Preview
from lb_xdp.core.snapshot import Snapshot
from lb_xdp.core.wish import Match, Outcome, ReloadWish, refuse_stale, revision
from lb_xdp.forecast import Forecast
from lb_xdp.layers import Layers
from lb_xdp.ledger import Ledger
from lb_xdp.live_flows import LiveFlows
from lb_xdp.naming import Naming
from lb_xdp.probing import Probing
from lb_xdp.reconciler import Reconciler
from lb_xdp.reporter import Reporter
from lb_xdp.turns import Turns

Result = TypeVar("Result")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """Belongs to the event loop. ``remove`` takes program and pins away, and names them."""

    reconciler: Reconciler
    ledger: Ledger
    naming: Naming
    chronicle: Chronicle
    reporter: Reporter
    live_flows: LiveFlows
    layers: Layers
    probing: Probing
    changes: Changes
    confirmation: Confirmation
    forecast: Forecast
    turns: Turns
    remove: Callable[[], Sequence[str]]

    # What shows something.

    async def snapshot(self) -> Snapshot:
        """Return the gateway as it is now."""
        reporter, ledger = self.reporter, self.ledger
        reporter.name_notices = self.naming.notices(ledger.present.config)
        reporter.change, reporter.last_reload = ledger.status(), self.changes.last_reload
        trouble = filter(None, [self.confirmation.trouble])
        reporter.change_notices = (*trouble, *ledger.notices())
        return self.chronicle.completed(await self.reporter.snapshot())

    async def events(self, wanted: EventFilter, wait_s: float) -> list[Event]:
        """Return events that are wanted."""
        return await self.chronicle.events(wanted, wait_s)

    async def plan(self, text: str | None, source: str) -> Preview:
        """Return what a configuration would change."""
        return await self.turns.in_turn(lambda: self.forecast.plan(text, source, self.revision()))

    async def flows(self, wanted: Wanted) -> FlowList:
        """Return recorded flows."""
        return await self.live_flows.listed(wanted)

    def revision(self) -> str:
        """Return what the desired state is called: configuration and overrides."""
        return revision(self.ledger.present.digest, self.reconciler.overrides)

    def names(self) -> Mapping[str, Sequence[str]]:
        """Return the backends' names by service, those that linger included."""
        return {
            service.name: [backend.name for backend in service.pool.backends]
            for service in self.reconciler.whole.services
        }

    def pool_names(self) -> Sequence[str]:
        """Return the names of all pools in use, in the order of the services."""
        return list(dict.fromkeys(service.pool.name for service in self.reconciler.whole.services))

    def overrides(self) -> Overrides:
        """Return what was asked for at run time and still holds."""
        return self.reconciler.overrides

    def count_stranger(self) -> None:
        """Take in that a request over TCP had no token that is known."""
        self.reporter.api_strangers += 1

    # What changes something.

    async def reload(self, wish: ReloadWish) -> Outcome:
        """Go to another configuration, all or nothing."""
        return await self._in_turn(wish.match, lambda: self._reload(wish), complete=True)

    async def confirm(self, author: str, match: Match) -> str:
        """Keep a change that waits for it."""
        return await self._in_turn(match, lambda: self.confirmation.confirm(author))

    async def roll_back(self, author: str, match: Match) -> str:
        """Undo a change that waits to be confirmed."""
        return await self._in_turn(match, lambda: self.confirmation.roll_back(author))

    async def set_overrides(self, *overrides: Override, match: Match) -> None:
        """Let these hold from now on, all or none; they are on disk before they do.

        Raises UnknownNameError, UnfitOverrideError and StoreError; then nothing was changed.
        """
        await self._in_turn(match, lambda: self._override(self.layers.set(overrides)))

    async def clear_overrides(
        self, *subjects: Subject, author: str, match: Match
    ) -> tuple[Override, ...]:
        """Let the file hold again for these, all or none, and return what held.

        ``author`` is who wants that. Raises StoreError; then nothing was changed.
        """
        change = partial(self.layers.clear, subjects, author)
        return await self._in_turn(match, lambda: self._override(change()))

    async def detach(self, match: Match) -> None:
        """Remove program and pins, and end."""
        await self._in_turn(match, self._detach)

    async def _in_turn(
        self, match: Match, change: Callable[[], Awaitable[Result]], *, complete: bool = False
    ) -> Result:
        """Make a change in its turn, unless another one came first. Raises StaleError then.

        The look and the change are one turn, so nothing comes in between. One that is ``complete``
        by itself is answered before the next cycle.
        """

        async def carry_out() -> Result:
            refuse_stale(match, self.revision())
            return await change()

        return await self.turns.in_turn(carry_out, complete=complete)

    async def _reload(self, wish: ReloadWish) -> Outcome:
        outcome = await self.changes.reload(wish)
        self.confirmation.begin()
        return dataclasses.replace(outcome, revision=self.revision())

    async def _override(self, change: Awaitable[Result]) -> Result:
        """Change overrides; the cycle that follows in the same turn brings them to the kernel."""
        changed = await change
        self.probing.again()
        return changed

    async def _detach(self) -> None:
        for removed in self.remove():
            _log.info("removed %s", removed)
        self.turns.stop()
