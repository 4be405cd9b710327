"""A wall clock that can be set, for one daemon: ``python -m tests.support.clock FILE run ...``.

FILE holds by how many seconds the daemon's wall clock is off; the rest is for ``lb-xdp``.

CLOCK_REALTIME has no namespace, and the machine's own clock is nobody's to set. libfaketime slows
Python's threads down to where they miss their probes. So ``time`` and ``datetime`` of the daemon's
interpreter are told another time, before anything of lb_xdp is imported; CLOCK_MONOTONIC is left
alone, as it is when an operator sets the time.
"""

from __future__ import annotations

import datetime as dt
import importlib
import sys
import time
from pathlib import Path


class WallClock:
    """``command`` is what a gateway must be started with; ``set_back`` may come at any time."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "wall-clock"
        self._file.write_text("0\n", encoding="ascii")
        self.command = (sys.executable, "-m", "tests.support.clock", str(self._file))

    def set_back(self, seconds: int) -> None:
        """Have the daemon's wall clock show an earlier time from now on."""
        written = self._file.with_suffix(".new")
        written.write_text(f"-{seconds}\n", encoding="ascii")
        written.replace(self._file)  # it is read at each look at the clock


def _tell_another_time(file: Path) -> None:
    true_ns = time.time_ns

    def time_ns() -> int:
        return true_ns() + int(file.read_text(encoding="ascii")) * 10**9

    class Datetime(dt.datetime):
        @classmethod
        def now(cls, tz: dt.tzinfo | None = None) -> Datetime:
            return cls.fromtimestamp(time_ns() / 1e9, tz)

    time.time_ns = time_ns
    time.time = lambda: time_ns() / 1e9
    dt.datetime = Datetime  # type: ignore[misc]  # a stand-in, for whoever imports it later


if __name__ == "__main__":
    _tell_another_time(Path(sys.argv[1]))
    sys.argv[1:2] = []
    importlib.import_module("lb_xdp.cli").main()
