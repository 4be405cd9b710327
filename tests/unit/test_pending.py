"""Which configuration a start begins with: the file's, one given by hand, or one to go back to."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lb_xdp.errors import InvalidConfigError, StoreError
from lb_xdp.ledger import Ledger
from lb_xdp.pending import (
    InForce,
    InForceFile,
    Mistaken,
    Opening,
    Undo,
    Written,
    after_roll_back,
    called,
    file_and_gateway,
    openings,
    read,
    written,
)
from tests.support.writings import text
from tests.unit.test_store import no_room

NOW_S = 1000.0
LB = Path("/etc/lb-xdp/gw1.yaml")
OLD, NEW, EDITED = text(100, 100), text(100, 300), text(100, 500)
FILE = written(NEW, "lb.yaml")
BEFORE = written(OLD, "lb.yaml")


def waiting(until_s: float = NOW_S + 60) -> InForce:
    """Return what is kept of a reload of the daemon's file that waits to be confirmed."""
    return InForce(NEW, "lb.yaml", "ann", NOW_S, "", undo=Undo(OLD, "lb.yaml", until_s, 60.0))


def first(file: Written, held: InForce | None, now_s: float = NOW_S) -> Opening:
    return openings(file, held, now_s)[0]


def test_without_anything_kept_the_file_counts() -> None:
    """As every start that nothing special came before."""
    assert openings(FILE, None, NOW_S) == [Opening(FILE)]


@pytest.mark.parametrize("file_text", [NEW, EDITED, OLD])
def test_what_waits_goes_on_whatever_the_file_says(file_text: str) -> None:
    """A promise to go back is kept though somebody has edited the file meanwhile."""
    file = written(file_text, "lb.yaml")
    assert openings(file, waiting(), NOW_S + 59) == [Opening(FILE, waiting())]


@pytest.mark.parametrize("file_text", [NEW, EDITED])
def test_when_the_time_is_over_the_former_one_is_in_force(file_text: str) -> None:
    """The file is passed over until it is another, or one start later it would be back."""
    file = written(file_text, "lb.yaml")
    back, again = openings(file, waiting(), NOW_S + 60)
    assert (back.written, back.undone) == (BEFORE, FILE)
    assert back.held == InForce(OLD, "lb.yaml", "", NOW_S + 60, called(file_text), rolled_back=True)
    assert again == Opening(FILE, waiting())
    assert first(file, back.held).written == BEFORE
    other = written(text(7), "lb.yaml")
    assert first(other, back.held) == Opening(other)


def test_a_file_that_is_the_former_one_again_needs_no_note() -> None:
    """After the roll-back the file says what is in force: nothing is kept."""
    back, _ = openings(BEFORE, waiting(), NOW_S + 60)
    assert (back.written, back.held) == (BEFORE, None)


def test_a_file_by_hand_stays_until_the_daemons_own_changes() -> None:
    """It was meant instead of that very file."""
    held = InForce(NEW, "/tmp/new.yaml", "ann", NOW_S, called(OLD))
    assert first(BEFORE, held).written.config.source == "/tmp/new.yaml"
    assert first(FILE, held) == Opening(FILE)


def test_texts_that_are_refused_by_now_are_passed_over(caplog: pytest.LogCaptureFixture) -> None:
    """A file that they name may be gone, or the version is another: the file is in force then."""
    broken = replace(waiting(), text="gateway: 1\n")
    assert openings(FILE, broken, NOW_S) == [Opening(FILE)]
    undo = Undo("gateway: 1\n", "lb.yaml", NOW_S, 60.0)
    assert openings(FILE, replace(waiting(), undo=undo), NOW_S + 60) == [
        Opening(FILE, replace(waiting(), undo=undo))
    ]
    assert "cannot be so again" in caplog.text


def mistaken() -> Mistaken:
    """Return the daemon's file as somebody has broken it."""
    with pytest.raises(InvalidConfigError) as caught:
        written("gateway: 1\n", "lb.yaml")
    return Mistaken("gateway: 1\n", caught.value)


def test_a_file_with_mistakes_does_not_break_a_promise() -> None:
    """What waits goes on, or is undone when its time is over, and stays undone."""
    file = mistaken()
    assert openings(file, waiting(), NOW_S) == [Opening(FILE, waiting(), refused=file.error)]
    back, again = openings(file, waiting(), NOW_S + 60)
    assert (back.written, back.undone, back.refused) == (BEFORE, FILE, file.error)
    assert again == Opening(FILE, waiting(), refused=file.error)
    undone = after_roll_back(BEFORE, NEW, NOW_S)
    assert openings(file, undone, NOW_S) == [Opening(BEFORE, undone, refused=file.error)]


@pytest.mark.parametrize(
    "held",
    [
        None,
        InForce(NEW, "/tmp/new.yaml", "ann", NOW_S, called(OLD)),
        InForce("gateway: 2\n", "lb.yaml", "", NOW_S, called(OLD), rolled_back=True),
    ],
    ids=["nothing", "by hand", "mistakes there as well"],
)
def test_a_file_with_mistakes_is_refused_otherwise(held: InForce | None) -> None:
    """Nothing was promised, or what was cannot be kept."""
    file = mistaken()
    with pytest.raises(InvalidConfigError) as caught:
        openings(file, held, NOW_S)
    assert caught.value is file.error


def test_what_is_kept_is_found_by_the_daemons_file(tmp_path: Path) -> None:
    """A file with mistakes may not say the gateway's name; of two gateways none is guessed."""
    path, root = tmp_path / "lb.yaml", tmp_path / "state"
    path.write_text("gateway: 1\n")
    with pytest.raises(InvalidConfigError):
        file_and_gateway(path, root)
    InForceFile(root / "gw7", path).save(waiting())
    InForceFile(root / "gw2", path.with_name("gw2.yaml")).save(waiting())
    (root / "gw3").mkdir()
    (root / "gw3" / "in-force.json").write_text("[]")
    file, name = file_and_gateway(path, root)
    assert (isinstance(file, Mistaken), file.text, name) == (True, "gateway: 1\n", "gw7")
    InForceFile(root / "gw4", path).save(waiting())
    with pytest.raises(InvalidConfigError):
        file_and_gateway(path, root)
    path.write_text(NEW)
    assert file_and_gateway(path, root)[1] == "gw1"


@given(st.floats(-1e6, 1e6))
def test_a_clock_that_is_set_gives_no_more_time(step_s: float) -> None:
    """What is left is never more than was given, and nothing after the end."""
    undo = Undo("", "", NOW_S + 60, 60.0)
    assert 0.0 <= undo.left_s(NOW_S + step_s) <= 60.0
    assert undo.left_s(NOW_S + 60 + abs(step_s)) == 0.0


def test_what_is_kept_comes_back(tmp_path: Path) -> None:
    """With and without a way back; and nothing is left of what is not wanted any more."""
    file = InForceFile(tmp_path / "gw1", LB)
    assert file.load() is None
    for held in (waiting(), after_roll_back(BEFORE, NEW, NOW_S)):
        file.save(held)
        assert file.load() == held
    file.save(None)
    assert (file.load(), list((tmp_path / "gw1").iterdir())) == (None, [])


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"version": 2}', '{"version": 1, "x": 1}'])
def test_what_cannot_be_understood_is_told(
    content: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The start goes on with the file; never with half of a promise."""
    (tmp_path / "in-force.json").write_text(content)
    assert InForceFile(tmp_path, LB).load() is None
    assert "the daemon's file counts" in caplog.text


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    """The name of the gateway stands in it: without it nothing kept can be found."""
    with pytest.raises(InvalidConfigError, match="cannot be read"):
        read(tmp_path / "missing.yaml")


async def test_a_full_disk_refuses_what_is_promised_and_is_told_of_the_rest(tmp_path: Path) -> None:
    """What must be known after a crash is on disk first; what is in force is so without a disk."""
    path = tmp_path / "lb.yaml"
    path.write_text(NEW)
    ledger = Ledger(path, InForceFile(tmp_path, LB), Opening(read(path)))
    with no_room():
        with pytest.raises(StoreError, match="nothing was changed"):
            await ledger.promise(waiting())
        await ledger.enter(BEFORE, after_roll_back(BEFORE, NEW, NOW_S))
    assert (ledger.present, ledger.waits) == (BEFORE, False)
    assert "a restart may go on with another" in ledger.notices()[-1]
    await ledger.catch_up()
    assert ledger.trouble == ""
    assert InForceFile(tmp_path, LB).load() == ledger.held


async def test_status_says_what_is_not_the_files(tmp_path: Path) -> None:
    """What waits has a time, what was given by hand or undone a sentence."""
    path = tmp_path / "lb.yaml"
    path.write_text(NEW)
    ledger = Ledger(path, InForceFile(tmp_path, LB), Opening(read(path)))
    assert (ledger.status(), ledger.notices()) == (None, ())
    await ledger.enter(FILE, waiting())
    status = ledger.status()
    assert status is not None
    assert (status.author, status.confirm_by_timestamp_s) == ("ann", NOW_S + 60)
    assert (ledger.waits, ledger.notices()) == (True, ())
    await ledger.confirm(replace(waiting(), undo=None))
    assert "given by hand" in ledger.notices()[0]
    await ledger.enter(BEFORE, after_roll_back(BEFORE, NEW, NOW_S))
    assert "in force again after a roll-back" in ledger.notices()[0]


def test_the_file_is_whole_or_not_there(tmp_path: Path) -> None:
    """It is JSON that somebody can read, with a version."""
    asyncio.run(asyncio.to_thread(InForceFile(tmp_path, LB).save, waiting()))
    found = json.loads((tmp_path / "in-force.json").read_text())
    assert (found["version"], found["undo"]["until_timestamp_s"]) == (1, NOW_S + 60)
