"""What was asked for at run time and who is on the way out: kept on disk, set, cleared, ended.

Owns the order of things: an override is judged, then on disk, and only then in force. It refuses
to know what an override means (``core.override``, ``core.standing``) and how a file is written
(``store``). All of it happens in the daemon's one working task.
"""

from __future__ import annotations

import asyncio
import logging
import time

from lb_xdp.core.event import Event, EventKind
from lb_xdp.core.override import Override, Overrides, Subject, refuse_unfit
from lb_xdp.errors import StoreError
from lb_xdp.reconciler import Reconciler
from lb_xdp.store import Kept, Store
from lb_xdp.witness import Record

_log = logging.getLogger(__name__)


class Layers:
    """Between a reconciler and its store. ``notice`` says what is wrong with the disk, if it is."""

    def __init__(self, reconciler: Reconciler, store: Store, record: Record) -> None:
        self._reconciler = reconciler
        self._store = store
        self._record = record
        self._kept = (reconciler.overrides, reconciler.lingering)
        self.notice = store.notice

    async def set(self, overrides: tuple[Override, ...]) -> None:
        """Let these hold, all or none. Raises UnknownNameError, UnfitOverrideError, StoreError."""
        before = self._reconciler.overrides
        refuse_unfit(overrides, self._reconciler.whole)
        after = before.having(*overrides)
        await self._go_to(after)
        for override in overrides:
            former = before.held.get(override.subject)
            if override.subject in after.held:
                self._tell(EventKind.OVERRIDE_SET, former, override, override.author)
            elif former is not None:
                self._tell(EventKind.OVERRIDE_CLEARED, former, None, override.author)

    async def clear(self, subjects: tuple[Subject, ...], author: str) -> tuple[Override, ...]:
        """Let the file hold again, for all or none, and return what held; raises StoreError.

        A subject without an override is passed over: it may have ended meanwhile.
        """
        before = self._reconciler.overrides
        gone = tuple(before.held[s] for s in dict.fromkeys(subjects) if s in before.held)
        if gone:
            await self._go_to(before.lacking(*subjects))
        for override in gone:
            self._tell(EventKind.OVERRIDE_CLEARED, override, None, author)
        return gone

    def expire(self) -> None:
        """End the overrides whose time is over. The disk follows (``keep_up``)."""
        overrides = self._reconciler.overrides
        over = overrides.expired(time.time())
        if not over:
            return
        self._reconciler.set_overrides(overrides.lacking(*(o.subject for o in over)))
        for override in over:
            self._tell(EventKind.OVERRIDE_EXPIRED, override, None, override.author)

    def behind(self) -> bool:
        """Whether something has changed by itself that is not on disk yet."""
        overrides, lingering = self._kept
        reconciler = self._reconciler
        return overrides is not reconciler.overrides or lingering is not reconciler.lingering

    async def keep_up(self) -> None:
        """Have on disk what has changed by itself; a disk that takes nothing is told about.

        Nothing waits for that: an override that has ended ends again after a restart, and who
        lingers is in the kernel.
        """
        try:
            await self._keep(self._reconciler.overrides)
        except StoreError as error:
            if str(error) != self.notice:
                _log.error("%s", error)
            self.notice = str(error)

    async def _go_to(self, overrides: Overrides) -> None:
        await self._keep(overrides)
        self._reconciler.set_overrides(overrides)

    async def _keep(self, overrides: Overrides) -> None:
        lingering = self._reconciler.lingering
        kept = Kept(overrides, self._reconciler.farewells())
        await asyncio.to_thread(self._store.save, kept)
        self._kept = (overrides, lingering)
        self.notice = ""

    def _tell(
        self, kind: EventKind, before: Override | None, after: Override | None, author: str
    ) -> None:
        about = after or before
        if about is None:
            raise ValueError("an event about no override")
        subject = about.subject
        self._record(
            Event(
                kind,
                time.time(),
                subject.service,
                subject.backend,
                f"{subject.kind} {before.value}" if before else "",
                f"{subject.kind} {after.value}" if after else "",
                about.reason,
                author,
            )
        )
