"""Which configuration is in force where that is not simply the daemon's file: what a restart finds.

    <state directory>/in-force.json

Owns that file, and the choice at a start. There is one when a configuration was given by hand, when
one waits to be confirmed, and after a roll-back: then the daemon's file is the very one that was
undone, and a restart must not bring it back. The choice:

 - what waits to be confirmed goes on, until its time is over, whatever the file has become;
 - once its time is over, the configuration before it is in force again;
 - otherwise the file counts as soon as it is another than when it was passed over;
 - a file with mistakes never counts: where a change waits or was undone, that goes on without it,
   since nobody else would keep the promise, and nobody would look after the backends.

Times are Unix time: what waits may have to be undone after a reboot.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from lb_xdp.config.load import read_text
from lb_xdp.config.reread import Reading, read_again
from lb_xdp.core.model import Config
from lb_xdp.errors import InvalidConfigError
from lb_xdp.store import remove_file, replace_file

_log = logging.getLogger(__name__)

_VERSION = 1
_NAME = "in-force.json"


@dataclass(frozen=True, slots=True)
class Written:
    """A configuration as it was written: names are names. ``reading`` is how it was read."""

    text: str
    reading: Reading

    @property
    def config(self) -> Config:
        """Return the configuration."""
        return self.reading.config

    @property
    def digest(self) -> str:
        """Return what it is called."""
        return self.reading.digest

    @property
    def source(self) -> str:
        """Return where the text is from, for messages."""
        return self.config.source


@dataclass(frozen=True, slots=True)
class Mistaken:
    """The daemon's file where it is no configuration; ``text`` is nothing if it has none."""

    text: str
    error: InvalidConfigError


@dataclass(frozen=True, slots=True)
class Undo:
    """The configuration to go back to at a time, unless somebody confirms the one after it."""

    text: str
    source: str
    until_timestamp_s: float
    confirm_s: float

    def left_s(self, now_timestamp_s: float) -> float:
        """Return how long it waits yet; a clock that was set back gives it no more time."""
        return min(max(self.until_timestamp_s - now_timestamp_s, 0.0), self.confirm_s)


@dataclass(frozen=True, slots=True)
class InForce:
    """A configuration in force that a start would not find in the daemon's file alone.

    ``passed_over`` is the fingerprint of the daemon's file at that moment. ``rolled_back``: it is
    in force because a later one was undone.
    """

    text: str
    source: str
    author: str
    at_timestamp_s: float
    passed_over: str
    rolled_back: bool = False
    undo: Undo | None = None


@dataclass(frozen=True, slots=True)
class Opening:
    """What to start with. ``held`` is what stays on disk with it.

    ``undone`` is what was in force until now, where this start goes back from it. ``refused`` is
    what is wrong with the daemon's file, where this start goes on without it.
    """

    written: Written
    held: InForce | None = None
    undone: Written | None = None
    refused: InvalidConfigError | None = None


class InForceFile:
    """The file in one directory. One process writes it: the one that holds the gateway's lock.

    ``daemons_file`` is the configuration that the daemon was told to run with.
    """

    def __init__(self, directory: Path, daemons_file: Path) -> None:
        self._path = directory / _NAME
        self._daemons_file = daemons_file

    def load(self) -> InForce | None:
        """Return what was kept; nothing where there is no file, or none that can be understood."""
        try:
            return _decode(json.loads(self._path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            _log.error("%s cannot be read, the daemon's file counts: %r", self._path, error)
            return None

    def save(self, held: InForce | None) -> None:
        """Keep this, or nothing. Raises StoreError."""
        if held is None:
            remove_file(self._path)
        else:
            file = str(self._daemons_file.absolute())
            document = {"version": _VERSION, "file": file, **dataclasses.asdict(held)}
            replace_file(self._path, json.dumps(document, indent=1))


def _decode(document: dict[str, Any]) -> InForce:
    if document.pop("version") != _VERSION:
        raise ValueError("made by another version of lb_xdp")
    document.pop("file", None)
    undo = document.pop("undo")
    return InForce(**document, undo=None if undo is None else Undo(**undo))


def read(path: Path, before: Written | None = None) -> Written:
    """Return the configuration in a file, see ``written``. Raises InvalidConfigError."""
    return written(read_text(path), str(path), before)


def written(text: str, source: str, before: Written | None = None) -> Written:
    """Return the configuration in a text. Raises InvalidConfigError.

    What it has in common with ``before`` takes no time, and is the same.
    """
    return Written(text, read_again(text, source, before.reading if before else None))


def text_of(path: Path) -> str:
    """Return a file's text, nothing where it cannot be read."""
    try:
        return read_text(path)
    except InvalidConfigError:
        return ""


def called(text: str) -> str:
    """Return the fingerprint of a file with this text."""
    return sha256(text.encode()).hexdigest()


def openings(
    file: Written | Mistaken, held: InForce | None, now_timestamp_s: float
) -> list[Opening]:
    """Return what to start with, the best first: a later one is for when that fails.

    ``file`` is the daemon's file as it is now, ``held`` what ``InForceFile.load`` found. Raises
    InvalidConfigError where the file has mistakes and nothing goes on without it.
    """
    if held is None or not _goes_on(held, file):
        return [_opening(file)]
    refused = file.error if isinstance(file, Mistaken) else None
    like = file if isinstance(file, Written) else None
    present = written_again(held.text, held.source, like)
    found = [Opening(present, held, refused=refused)] if present else []
    undo = held.undo
    if undo is not None and not undo.left_s(now_timestamp_s):
        before = written_again(undo.text, undo.source, present or like)
        if before is not None:
            after = after_roll_back(before, file.text, now_timestamp_s)
            found.insert(0, Opening(before, after, undone=present or before, refused=refused))
    return found or [_opening(file)]


def _goes_on(held: InForce, file: Written | Mistaken) -> bool:
    if held.undo is not None:
        return True
    if isinstance(file, Mistaken):
        return held.rolled_back
    return held.passed_over == called(file.text)


def _opening(file: Written | Mistaken) -> Opening:
    """Return the start with the daemon's file. Raises InvalidConfigError."""
    if isinstance(file, Mistaken):
        raise file.error
    return Opening(file)


def written_again(text: str, source: str, like: Written | None) -> Written | None:
    """Return a configuration that was fine once; None, and a word in the log, where it is not now.

    ``like`` is another one that may have much in common with it.
    It may name files that are gone.
    """
    try:
        return written(text, source, like)
    except InvalidConfigError as error:
        _log.error("a configuration that was in force cannot be so again: %s", error)
        return None


def after_roll_back(before: Written, file_text: str, now_timestamp_s: float) -> InForce | None:
    """Return what is to be kept after going back; nothing where the file says the same."""
    if before.text == file_text:
        return None
    return InForce(
        before.text, before.source, "", now_timestamp_s, called(file_text), rolled_back=True
    )


def file_and_gateway(path: Path, root: Path) -> tuple[Written | Mistaken, str]:
    """Return the daemon's file and its gateway's name; ``root`` holds what gateways keep.

    A file with mistakes is of use where something is kept beside it; otherwise raises
    InvalidConfigError.
    """
    try:
        file = read(path)
    except InvalidConfigError as error:
        name = _gateway_of(path, root)
        if name is None:
            raise
        return Mistaken(text_of(path), error), name
    return file, file.config.gateway.name


def _gateway_of(daemons_file: Path, root: Path) -> str | None:
    """Return the gateway of which something is kept beside this file; None if that is not one."""
    path = str(daemons_file.absolute())
    found = [kept.parent.name for kept in root.glob(f"*/{_NAME}") if _daemons_file(kept) == path]
    return found[0] if len(found) == 1 else None


def _daemons_file(kept: Path) -> str:
    try:
        return str(json.loads(kept.read_text(encoding="utf-8"))["file"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
