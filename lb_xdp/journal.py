"""The journal: events on disk, appended by a thread of its own, bounded, and read back.

Owns ``/var/lib/lb-xdp/<gateway>/events.jsonl``, one JSON object a line; the same with ``.1`` for
what came before; and ``events.next``, the first number that was never given out. It refuses to know
what an event means, and to hold anybody up: `record` only queues.

- Whoever reads sees what is written. A crash may tear the last line: it is passed over.
- Numbers never repeat, whatever is lost: before a number is used, a higher one is on disk as the
  next. A life that ended without `close` leaves a gap.
- A full disk loses nothing that was written. What cannot be written waits in memory, up to
  ``PENDING_MAX`` events, is shown like the rest, and is written once there is room.
- ``events.next`` also says when the daemon was last alive: then the time between is not counted as
  time in which backends were what they were.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from lb_xdp.core.event import Event, EventFilter, from_document, to_document

_log = logging.getLogger(__name__)

FILE_BYTES = 8 * 1024 * 1024
PENDING_MAX = 10_000
_RESERVED = 1_000  # numbers that are on disk as given out, beyond those that are
_ALIVE_S = 10.0  # how often the time of life is put down
_FILE_MODE = 0o640
_RETRY_S = 2.0  # how often writing to a full disk is tried again
_NEXT_FORMAT = "{:020d} {:020.3f}\n"


class Journal:
    """Open it in the event loop's thread, `record` from there, and `close` it at the end.

    ``trouble`` is a sentence for the operator while events cannot be written.
    """

    def __init__(self, folder: Path, *, file_bytes: int = FILE_BYTES) -> None:
        """Open or make the journal in ``folder``; where that is impossible, try again later."""
        self._file_bytes = file_bytes
        self._folder = folder
        self._path, self._older = folder / "events.jsonl", folder / "events.1.jsonl"
        self._fd = self._next_fd = -1
        self.trouble = ""
        # Without a place to read the next number from: one that no journal has come to by then.
        self.number, self.last_alive_timestamp_s = round(time.time() * 1e3), 0.0
        try:
            self._open()
            self.number, self.last_alive_timestamp_s = self._read_next()
        except OSError as error:
            self._complain(error)
        self._reserved = self.number
        self._reserve()
        self._arrived = threading.Condition()
        self._queue: deque[Event] = deque(maxlen=PENDING_MAX)
        self._closing = False
        self._readers: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []
        self._thread = threading.Thread(target=self._write_on, name="journal", daemon=True)
        self._thread.start()

    # What the event loop calls.

    def record(self, event: Event) -> Event:
        """Give an event its number and have it written; returns it with the number."""
        numbered = replace(event, number=self.number)
        self.number += 1
        with self._arrived:
            self._queue.append(numbered)
            self._arrived.notify()
        return numbered

    def close(self) -> None:
        """Write what is waiting, and give back the numbers that were held ready."""
        with self._arrived:
            self._closing = True
            self._arrived.notify()
        self._thread.join()
        if not self._queue:  # else their numbers were shown, and are lost with them
            self._put_next(self.number)
        for fd in (self._fd, self._next_fd):
            if fd >= 0:
                os.close(fd)

    async def select(self, wanted: EventFilter, *, wait_s: float = 0.0) -> list[Event]:
        """Return the newest events that are wanted, oldest first; wait for one if there is none."""
        arrived = asyncio.Event()
        reader = (asyncio.get_running_loop(), arrived)
        self._readers.append(reader)
        try:
            found = await asyncio.to_thread(self.read, wanted)
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    while wait_s and not found:
                        await arrived.wait()
                        arrived.clear()
                        found = await asyncio.to_thread(self.read, wanted)
        finally:
            self._readers.remove(reader)
        return found

    def read(self, wanted: EventFilter) -> list[Event]:
        """Return the newest events that are wanted, oldest first; may run in any thread."""
        found: list[Event] = []
        for event in self._backwards():
            if event.number <= wanted.after or len(found) >= wanted.newest:
                break
            if wanted.fits(event):
                found.append(event)
        return found[::-1]

    def replay(self) -> Iterator[Event]:
        """Yield every event that is kept, the oldest first."""
        return reversed(list(self._backwards()))

    def _backwards(self) -> Iterator[Event]:
        """Yield every event, the newest first, each once though a file is rotated meanwhile."""
        below = self.number
        with self._arrived:
            waiting = list(self._queue) if self.trouble else []
        for events in (reversed(waiting), _lines(self._path), _lines(self._older)):
            for event in events:
                if event.number < below:
                    below = event.number
                    yield event

    # What the thread does.

    def _open(self) -> None:
        """Open or make the files; raises OSError."""
        self._folder.mkdir(mode=0o750, parents=True, exist_ok=True)
        if self._next_fd < 0:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            self._next_fd = os.open(self._folder / "events.next", flags, _FILE_MODE)
        self._fd = _open_end(self._path)

    def _complain(self, error: OSError) -> None:
        what = f"events cannot be written to {self._path}: {error.strerror}"
        if what != self.trouble:
            _log.error("%s", what)
        self.trouble = what

    def _write_on(self) -> None:
        while True:
            with self._arrived:
                if not self._queue and not self._closing:
                    self._arrived.wait(_ALIVE_S)
                elif self.trouble and not self._closing:
                    self._arrived.wait_for(lambda: self._closing, _RETRY_S)
                batch, last = list(self._queue), self._closing
            self._reserve()
            if batch and self._append(batch):
                with self._arrived:
                    while self._queue and self._queue[0].number <= batch[-1].number:
                        self._queue.popleft()
            if batch:
                self._tell()
            if last:
                return

    def _append(self, batch: Iterable[Event]) -> bool:
        """Write a batch to the end, all of it or none; False if it must be tried again."""
        text = "".join(json.dumps(to_document(event), ensure_ascii=False) + "\n" for event in batch)
        data = text.encode()
        try:
            if self._fd < 0:
                self._open()
            size = os.fstat(self._fd).st_size
            if size and size + len(data) > self._file_bytes:
                self._rotate()
                size = 0
            self._write(data, size)
        except OSError as error:
            self._complain(error)
            return False
        if self.trouble:
            _log.info("events are written again to %s", self._path)
        self.trouble = ""
        return True

    def _write(self, data: bytes, size: int) -> None:
        try:
            written = 0
            while written < len(data):
                written += os.write(self._fd, data[written:])
            os.fdatasync(self._fd)
        except OSError:
            os.ftruncate(self._fd, size)  # no half of a batch
            raise

    def _rotate(self) -> None:
        fresh = _open_end(self._path.with_suffix(".new"))
        self._path.replace(self._older)
        self._path.with_suffix(".new").replace(self._path)
        os.close(self._fd)
        self._fd = fresh

    def _tell(self) -> None:
        for loop, arrived in tuple(self._readers):
            with suppress(RuntimeError):  # that loop has ended
                loop.call_soon_threadsafe(arrived.set)

    # Numbers.

    def _read_next(self) -> tuple[int, float]:
        """Return the first free number, and when the last life was seen to live (0: never)."""
        words = os.pread(self._next_fd, 64, 0).split()
        try:
            number, alive_s = int(words[0]), float(words[1])
        except (IndexError, ValueError):
            number, alive_s = 1, 0.0
        newest = next(iter(_lines(self._path)), None) or next(iter(_lines(self._older)), None)
        return max(number, newest.number + 1 if newest else 1), alive_s

    def _reserve(self) -> None:
        """See to it that the next numbers are on disk as given out; put down that we live."""
        if self.number + _RESERVED // 2 >= self._reserved:
            self._reserved = self.number + _RESERVED
        self._put_next(self._reserved)

    def _put_next(self, number: int) -> None:
        """Write in place: that needs no room on most file systems, also where there is none."""
        with suppress(OSError):
            os.pwrite(self._next_fd, _NEXT_FORMAT.format(number, time.time()).encode(), 0)


def _open_end(path: Path) -> int:
    """Open a file to append to; a line that a crash tore is ended first."""
    fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, _FILE_MODE)
    size = os.fstat(fd).st_size
    if size and os.pread(fd, 1, size - 1) != b"\n":
        with suppress(OSError):  # a full disk: the next batch then starts with the torn line
            os.write(fd, b"\n")
    return fd


def _lines(path: Path) -> Iterator[Event]:
    """Yield the events of a file, the last one first; what is no event is passed over."""
    try:
        data = path.read_bytes()
    except OSError:
        return
    end = len(data)
    while end > 0:
        start = data.rfind(b"\n", 0, end - 1) + 1
        event = _event(data[start:end])
        if event is not None:
            yield event
        end = start


def _event(line: bytes) -> Event | None:
    try:
        document: Any = json.loads(line)
        return from_document(document)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
