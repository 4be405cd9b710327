"""A change that waits to be confirmed: kept if somebody says so in time, undone if nobody does.

Owns the time and both ends. The promise holds across a restart and a crash (``pending``), and on a
clock that is set back while the daemon runs. A roll-back that fails is told in log, status and
events, and tried again until it works, or the change is confirmed after all.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace

from lb_xdp.changes import Changes
from lb_xdp.core.event import Event, EventKind
from lb_xdp.errors import LbError, NotNowError, StoppedError
from lb_xdp.ledger import Ledger
from lb_xdp.pending import InForce, Written, after_roll_back, text_of, written_again
from lb_xdp.turns import Turns
from lb_xdp.witness import Record

_log = logging.getLogger(__name__)

_RETRY_S = 5.0  # how soon a roll-back that failed is tried again


class Confirmation:
    """``trouble`` says why a change that should be undone could not be so far."""

    def __init__(self, ledger: Ledger, changes: Changes, turns: Turns, record: Record) -> None:
        self.trouble = ""
        self._ledger = ledger
        self._changes = changes
        self._turns = turns
        self._record = record
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """Wait for what is in force to be confirmed, if it is to be; also after a restart."""
        undo = self._ledger.held.undo if self._ledger.held else None
        if undo is None:
            return
        if self._changes.former is None:
            self._changes.former = written_again(undo.text, undo.source, self._ledger.present)
        self._wake_in(undo.left_s(time.time()))

    def _wake_in(self, seconds: float) -> None:
        self.close()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(seconds, self._turns.ask, self._time_is_up)

    def close(self) -> None:
        """Stop waiting; what is on disk stays."""
        if self._timer is not None:
            self._timer.cancel()

    async def confirm(self, author: str) -> str:
        """Keep what is in force. Raises NotNowError, StoreError; then nothing has changed."""
        held = self._require()
        kept = replace(held, undo=None) if held.passed_over else None
        await self._ledger.confirm(kept)
        self._end()
        summary = f"{held.source} is confirmed"
        self._tell(EventKind.CONFIRMED, summary, author)
        return summary

    async def roll_back(self, author: str) -> str:
        """Go back at once. Raises LbError; then it goes on to wait."""
        self._require()
        return await self._undo("asked for", author)

    async def _time_is_up(self) -> None:
        """Go back since nobody has confirmed; never give up."""
        held = self._ledger.held
        if held is None or held.undo is None:
            return
        try:
            await self._undo(f"not confirmed within {held.undo.confirm_s:g} s", "")
        except StoppedError:
            raise
        except LbError as error:
            trouble = f"the change to {held.source} cannot be undone, trying again: {error}"
            if trouble != self.trouble:
                self._tell(EventKind.TROUBLE, trouble, "")
            self.trouble = trouble
            _log.error("%s", trouble)
            self._wake_in(_RETRY_S)

    async def _undo(self, why: str, author: str) -> str:
        undone, before = self._ledger.present.source, self._before()
        with self._changes.under_way():
            text = await asyncio.to_thread(text_of, self._ledger.path)
            moved = await self._changes.go(
                before, lambda: after_roll_back(before, text, time.time())
            )
            self._end()
        summary = f"{before.source} is in force again; {sum(moved.values())} slots moved"
        self._tell(EventKind.ROLLED_BACK, f"{undone}: {why}: {summary}", author)
        return summary

    def _before(self) -> Written:
        """Return what to go back to. Raises NotNowError where that is no configuration any more."""
        if self._changes.former is None:
            raise NotNowError(
                "the configuration before is refused by now, see the log: mend that, or `lb-xdp "
                "confirm` the present one"
            )
        return self._changes.former

    def _require(self) -> InForce:
        held = self._ledger.held
        if held is None or held.undo is None:
            raise NotNowError("no change waits to be confirmed")
        return held

    def _end(self) -> None:
        self.close()
        self._changes.former = None
        self.trouble = ""

    def tell_of_start(self, undone: Written) -> None:
        """Tell that this start has gone back from what was in force, as its time was over."""
        source = self._ledger.present.source
        cause = f"{undone.source}: not confirmed in time: {source} is in force again"
        self._tell(EventKind.ROLLED_BACK, cause, "")

    def _tell(self, kind: EventKind, cause: str, author: str) -> None:
        self._record(Event(kind, time.time(), cause=cause, author=author))
