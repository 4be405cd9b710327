"""Word of those who ask over TCP without a token that is known.

Somebody who tries tokens out should be seen, and fill no disk: the first is in the log at once,
what follows in a line a second, with how many there were. It refuses to act on it: a token is too
long to be guessed, and to shut out an address would shut out whoever shares it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

_log = logging.getLogger(__name__)

PERIOD_S: Final = 1.0


class Strangers:
    """Belongs to the event loop. ``count`` is called for each of them."""

    def __init__(self, count: Callable[[], None]) -> None:
        self._count = count
        self._unsaid = 0
        self._last = ""
        self._pause: asyncio.TimerHandle | None = None

    def note(self, peer: str, why: str) -> None:
        """Take in a request from an address that was refused, and why."""
        self._count()
        self._unsaid += 1
        self._last = f"{why} peer={peer}"
        if self._pause is None:
            self._say_and_pause()

    def close(self) -> None:
        """Say what is left to say."""
        if self._pause is not None:
            self._pause.cancel()
        self._say()

    def _pause_is_over(self) -> None:
        self._pause = None
        if self._unsaid:
            self._say_and_pause()

    def _say_and_pause(self) -> None:
        self._say()
        self._pause = asyncio.get_running_loop().call_later(PERIOD_S, self._pause_is_over)

    def _say(self) -> None:
        if self._unsaid:
            many = "a request" if self._unsaid == 1 else f"{self._unsaid} requests, the last one"
            _log.warning("API over TCP refused %s: %s", many, self._last)
        self._unsaid = 0
