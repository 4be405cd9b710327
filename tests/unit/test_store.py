"""What survives a restart: written as a whole or not at all, and read back or moved aside."""

from __future__ import annotations

import json
import os
import resource
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lb_xdp.core.desired import BackendId
from lb_xdp.core.lingering import Farewell
from lb_xdp.core.model import BackendKey, Protocol, ServiceKey
from lb_xdp.core.override import MAX_WEIGHT, Kind, Override, Overrides, Subject
from lb_xdp.core.snapshot import Admin
from lb_xdp.errors import StoreError
from lb_xdp.store import Kept, Store

DRAIN = Override(Subject("web", "web1", Kind.ADMIN), "drain", "uid 0", "new disks", 5.0, 9.5)
WEIGHT = Override(Subject("web", "[2001:db8::1]:80", Kind.WEIGHT), "0", "ann", "", 6.25)
LEFT = Farewell(
    BackendId(
        ServiceKey(IPv6Address("2001:db8::10"), 0, Protocol.UDP),
        BackendKey(IPv4Address("10.0.0.11"), 0),
    ),
    "web3",
    "web",
    1234.5,
)
KEPT = Kept(Overrides().having(DRAIN, WEIGHT), (LEFT,))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "lib" / "gw1"


def test_what_was_kept_comes_back(folder: Path) -> None:
    """Into directories that are not there yet, and again over what is there."""
    store = Store(folder)
    assert store.load() == Kept()
    store.save(KEPT)
    assert Store(folder).load() == KEPT
    store.save(Kept(KEPT.overrides))
    assert Store(folder).load() == Kept(KEPT.overrides)
    assert store.notice == ""
    assert [path.name for path in folder.iterdir()] == ["state.json"]


texts = st.text(max_size=20)
overrides = st.builds(
    lambda names, value, author, reason, at_s, expires_s: Override(
        Subject(names[0], names[1], Kind.WEIGHT if value.isdigit() else Kind.ADMIN),
        value,
        author,
        reason,
        at_s,
        expires_s,
    ),
    st.tuples(texts, texts),
    st.sampled_from([a.value for a in Admin if a is not Admin.READY])
    | st.integers(0, MAX_WEIGHT).map(str),
    texts,
    texts,
    st.floats(0, 1e10),
    st.none() | st.floats(0, 1e10),
)


@given(st.lists(overrides, max_size=5))
def test_every_override_comes_back_as_it_was(many: list[Override]) -> None:
    """Whatever is in names and reasons."""
    with tempfile.TemporaryDirectory() as folder:
        kept = Kept(Overrides().having(*many))
        Store(Path(folder)).save(kept)
        assert Store(Path(folder)).load() == kept


def test_others_may_not_read_it(folder: Path) -> None:
    """Reasons and authors are for root and its group, whatever the umask."""
    before = os.umask(0)
    try:
        Store(folder).save(KEPT)
    finally:
        os.umask(before)
    assert stat.S_IMODE((folder / "state.json").stat().st_mode) == 0o640
    assert stat.S_IMODE(folder.stat().st_mode) == 0o750


def test_the_format_has_a_version(folder: Path) -> None:
    """A program that knows another one does not guess."""
    Store(folder).save(KEPT)
    document = json.loads((folder / "state.json").read_text())
    assert document["version"] == 1
    document["version"] = 2
    (folder / "state.json").write_text(json.dumps(document))
    store = Store(folder)
    assert store.load() == Kept()
    assert "format 2, this program knows 1" in store.notice


def spoiled(change: str) -> str:
    """Return a file with something in it that cannot be."""
    with tempfile.TemporaryDirectory() as name:
        Store(Path(name)).save(KEPT)
        text = (Path(name) / "state.json").read_text()
    old, new = change.split(" -> ")
    assert old in text
    return text.replace(old, new)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "5",
        "{}",
        '{"version": 1, "overrides": 5, "lingering": []}',
        '{"version": 1, "overrides": [], "lingering": [{}]}',
        '{"version": 1, "overrides": [[]], "lingering": []}',
        spoiled('"drain" -> "ready or not"'),
        spoiled('"0" -> "65536"'),
        spoiled('"0" -> "-1"'),
        spoiled('"admin" -> "colour"'),
        spoiled("9.5 -> []"),
        spoiled('"udp" -> "sctp"'),
        spoiled('"2001:db8::10" -> "2001:db8:::10"'),
        "\udcff",
    ],
)
def test_a_corrupt_file_is_moved_aside(folder: Path, text: str) -> None:
    """The gateway starts without it and says so; the file is there to be looked at."""
    folder.mkdir(parents=True)
    (folder / "state.json").write_text(text, encoding="utf-8", errors="surrogateescape")
    store = Store(folder)
    assert store.load() == Kept()
    assert "cannot be understood" in store.notice
    assert "set them again" in store.notice
    assert (folder / "state.bad").exists()
    assert not (folder / "state.json").exists()
    store.save(KEPT)
    assert Store(folder).load() == KEPT


def test_a_file_that_cannot_be_read_is_told(folder: Path) -> None:
    """A directory in its place, here."""
    (folder / "state.json").mkdir(parents=True)
    store = Store(folder)
    assert store.load() == Kept()
    assert "cannot be read" in store.notice


@contextmanager
def no_room() -> Iterator[None]:
    """Let no file become larger than nothing, as on a disk that is full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_without_room_nothing_changes(folder: Path) -> None:
    """What was kept before is kept still, and nothing is left behind."""
    Store(folder).save(KEPT)
    with no_room(), pytest.raises(StoreError, match="nothing was changed"):
        Store(folder).save(Kept())
    assert Store(folder).load() == KEPT
    assert [path.name for path in folder.iterdir()] == ["state.json"]
