"""Which configuration is in force, and what is kept of that for a restart: in memory and on disk.

Owns that both say the same, or that somebody is told. What is kept, and what a start makes of it,
is ``pending``'s.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from lb_xdp.core.snapshot import ChangeStatus
from lb_xdp.errors import StoreError
from lb_xdp.pending import InForce, InForceFile, Opening, Written

_log = logging.getLogger(__name__)


class Ledger:
    """``path`` is the daemon's own file. ``trouble`` says what is wrong with the disk, if it is."""

    def __init__(self, path: Path, file: InForceFile, opening: Opening) -> None:
        self.path = path
        self.present: Written = opening.written
        self.held: InForce | None = opening.held
        self.trouble = ""
        self._file = file

    @property
    def waits(self) -> bool:
        """Whether a change waits to be confirmed."""
        return self.held is not None and self.held.undo is not None

    async def promise(self, held: InForce) -> None:
        """Have on disk what is about to be in force. Raises StoreError; then nothing changed."""
        await asyncio.to_thread(self._file.save, held)

    async def enter(self, present: Written, held: InForce | None) -> None:
        """Note what is in force by now. Should the disk not take it, that is told."""
        self.present, self.held = present, held
        await self.catch_up()

    async def catch_up(self) -> None:
        """Have on disk what is in force, if it can be."""
        try:
            await asyncio.to_thread(self._file.save, self.held)
        except StoreError as error:
            self.trouble = f"a restart may go on with another configuration: {error}"
            _log.error("%s", self.trouble)
        else:
            self.trouble = ""

    async def confirm(self, held: InForce | None) -> None:
        """Keep what is in force without a way back. Raises StoreError; then nothing has changed."""
        await asyncio.to_thread(self._file.save, held)
        self.held = held

    def status(self) -> ChangeStatus | None:
        """Return what status shows of it; None where the daemon's file is in force."""
        held = self.held
        if held is None:
            return None
        undo = held.undo
        return ChangeStatus(
            held.source,
            str(self.path),
            held.author,
            held.at_timestamp_s,
            held.rolled_back,
            None if undo is None else undo.until_timestamp_s,
            "" if undo is None else undo.source,
        )

    def notices(self) -> tuple[str, ...]:
        """Return a sentence for each thing about it that an operator should read."""
        held, said = self.held, []
        if held is not None and held.undo is None:
            way = "in force again after a roll-back" if held.rolled_back else "given by hand"
            said.append(
                f"{held.source}, {way}, not what {self.path} says: `lb-xdp reload` loads that"
            )
        return (*said, *filter(None, [self.trouble]))
