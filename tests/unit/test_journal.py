"""The journal keeps what it was given, whatever happens to the process and the disk."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from subprocess import run

import pytest

from lb_xdp.core.event import Event, EventFilter, EventKind, from_document, to_document
from lb_xdp.journal import Journal
from tests.support.scenes import wait_until

EVENT = Event(
    EventKind.BACKEND_STATE, 1_700_000_000.5, "web", "web1", "up", "down", "timeout", "root", 0.25
)
EVERYTHING = EventFilter(newest=100_000)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    """Provide a journal that is closed after the test."""
    opened = Journal(tmp_path)
    yield opened
    opened.close()


def written(folder: Path) -> list[int]:
    """Return the numbers of all whole lines in both files, the older one's first."""
    lines: list[str] = []
    for name in ("events.1.jsonl", "events.jsonl"):
        with suppress(FileNotFoundError):  # there is no newer one while the files change places
            lines += (folder / name).read_text().splitlines(keepends=True)
    return [json.loads(line)["number"] for line in lines if line.endswith("\n")]


@pytest.mark.parametrize("event", [EVENT, Event(EventKind.STARTED, 1.0, number=3)])
def test_document_holds_the_whole_event(event: Event) -> None:
    """JSON and back gives the same event."""
    assert from_document(json.loads(json.dumps(to_document(event)))) == event


def test_event_outlives_the_process(tmp_path: Path) -> None:
    """What one life wrote the next one reads, with the numbers that it had."""
    first = Journal(tmp_path)
    numbers = [first.record(EVENT).number for _ in range(3)]
    first.close()
    second = Journal(tmp_path)
    assert second.read(EVERYTHING) == [replace(EVENT, number=number) for number in numbers]
    assert second.record(EVENT).number == numbers[-1] + 1
    second.close()


def test_torn_last_line_is_passed_over(tmp_path: Path) -> None:
    """A crash in the middle of a line costs that line: the rest is read, and writing goes on."""
    first = Journal(tmp_path)
    for _ in range(3):
        first.record(EVENT)
    first.close()
    path = tmp_path / "events.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    second = Journal(tmp_path)
    second.record(EVENT)
    second.close()
    assert [event.number for event in Journal(tmp_path).replay()] == [1, 2, 4]


def test_numbers_never_repeat_after_a_crash(tmp_path: Path) -> None:
    """A life that ends without a word, its file lost besides, leaves a gap and no second use."""
    code = (
        "import os, sys, pathlib; from lb_xdp.journal import Journal\n"
        "from lb_xdp.core.event import Event, EventKind\n"
        "journal = Journal(pathlib.Path(sys.argv[1]))\n"
        "for _ in range(700): last = journal.record(Event(EventKind.STARTED, 1.0)).number\n"
        "print(last, flush=True); os.kill(os.getpid(), 9)"
    )
    python = Path(".venv/bin/python").resolve()
    done = run([python, "-c", code, tmp_path], capture_output=True, text=True, check=False)
    (tmp_path / "events.jsonl").unlink()
    following = Journal(tmp_path)
    assert following.number > int(done.stdout)
    following.close()


def test_files_are_bounded_and_newest_first(tmp_path: Path) -> None:
    """Two files of the size that was allowed hold the latest events without a gap."""
    small = Journal(tmp_path, file_bytes=20_000)
    for number in range(1, 1001):
        small.record(EVENT)
        if number % 50 == 0:
            wait_until(lambda n=number: n in written(tmp_path), "it is written")  # type: ignore[misc]  # the loop's own number
    small.close()
    numbers = written(tmp_path)
    assert numbers == list(range(numbers[0], 1001))
    assert sum(path.stat().st_size for path in tmp_path.glob("*.jsonl")) <= 40_000
    assert [event.number for event in small.read(replace(EVERYTHING, newest=2))] == [999, 1000]


@pytest.mark.parametrize(
    ("wanted", "numbers"),
    [
        (EventFilter(), [1, 2, 3, 4]),
        (EventFilter(after=2), [3, 4]),
        (EventFilter(since_timestamp_s=200.0), [2, 3, 4]),
        (EventFilter(service="web"), [2, 3]),
        (EventFilter(service="web", backend="web1"), [2]),
        (EventFilter(kinds=frozenset({EventKind.STARTED})), [1, 4]),
        (EventFilter(newest=1), [4]),
        (EventFilter(newest=0), []),
        (EventFilter(service="web", newest=1), [3]),
    ],
)
def test_reading_by_conditions(tmp_path: Path, wanted: EventFilter, numbers: list[int]) -> None:
    """Every condition narrows what is read, and the newest of what fits are kept."""
    journal = Journal(tmp_path)
    journal.record(Event(EventKind.STARTED, 100.0))
    journal.record(Event(EventKind.BACKEND_STATE, 200.0, "web", "web1"))
    journal.record(Event(EventKind.BACKEND_STATE, 300.0, "web", "web2"))
    journal.record(Event(EventKind.STARTED, 400.0))
    journal.close()
    assert [event.number for event in journal.read(wanted)] == numbers


async def test_reader_waits_for_an_event(journal: Journal) -> None:
    """Whoever follows gets an event as soon as it is written, and nothing when time is over."""
    assert await journal.select(EventFilter(), wait_s=0.05) == []
    waiting = asyncio.create_task(journal.select(EventFilter(backend="web1"), wait_s=60))
    await asyncio.sleep(0)
    journal.record(replace(EVENT, backend="web2"))
    journal.record(EVENT)
    assert [event.number for event in await waiting] == [2]


@pytest.mark.parametrize("place", ["full", "file"])
def test_events_wait_in_memory_while_they_cannot_be_written(tmp_path: Path, place: str) -> None:
    """What was written stays, what comes is shown and told as trouble, and is written later."""
    folder = tmp_path / "journal"
    if place == "file":
        folder.write_text("in the way")
        journal = Journal(folder)
    else:
        journal = Journal(folder)
        journal.record(EVENT)
        wait_until(lambda: written(folder) != [], "the first one is written")
        journal._write = _no_room  # type: ignore[method-assign,assignment]  # a disk cannot be filled here
    journal.record(EVENT)
    wait_until(lambda: journal.trouble != "", "it is told")
    assert "cannot be written" in journal.trouble
    shown = [event.number for event in journal.read(EVERYTHING)]
    assert len(shown) == 2 if place == "full" else 1
    if place == "file":
        folder.unlink()
    else:
        del journal._write
    wait_until(lambda: not journal.trouble, "there is room again")
    journal.close()
    assert written(folder) == shown


def _no_room(_data: bytes, _size: int) -> None:
    raise OSError(28, "No space left on device")


def test_last_sign_of_life_is_kept(tmp_path: Path) -> None:
    """The next life knows until when the former one lived, though it ended without a word."""
    first = Journal(tmp_path)
    first.close()
    second = Journal(tmp_path)
    assert second.last_alive_timestamp_s > 1_700_000_000
    second.close()
