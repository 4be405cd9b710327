"""The text of a file, cut into the items of ``pools`` and ``services`` and a frame without them.

Owns where an item may be thought to begin and end, by lines and indentation alone. It knows no
YAML and can be wrong: inside of quotes lines may look like anything. That is noticed by whoever
reads the pieces, because then one of them is not a list of one item (``reread``). Why it is right
otherwise: an item that ends whole leaves a reader of YAML where it found it, in a list of that
indentation.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from lb_xdp.config.tree import Place

SECTIONS = ("pools", "services")

# Patterns of lines begin with the newline before them: it is found ten times as fast as ``^``.
_SECTION = re.compile(rf"\n({'|'.join(SECTIONS)}):[ ]*(?:#.*)?(?=\n)")
_TOP = re.compile(r"\n[^ \n#-]")
_ITEM = re.compile(r"\n( *)-(?=[ \n])")
_OTHER_RULES = ("\r", "\x85", "\u2028", "\u2029", "\ufeff", "\n%")
"""What ends a line for YAML beside a newline, or is skipped at its beginning; and directives."""

_REFERENCE = re.compile(r"^(?! *#).*[*&]", re.MULTILINE)
"""May be an anchor or an alias; in a frame it could have to do with what stands in an item."""

_STUB = "0"  # stands in the frame for all items of a section
_START = r"(?:^|[\s\[{,:?-])"  # what a reference follows; in quotes the same is none
_ANCHOR = re.compile(_START + "&")
_ALIAS = re.compile(_START + r"\*")
_MOST_ANCHORED = 8  # items with anchors; more of them, read with each alias, would take longer


@dataclass(frozen=True, slots=True)
class Piece:
    """One item with its dash and its indentation; ``above`` are the lines before it in the file.

    Where it may have an alias, those that it may refer to stand before it in ``text``. ``items`` is
    how many there are, itself included, and ``start`` where in the text it begins.
    """

    text: str
    above: int
    items: int = 1
    start: int = 0

    def on_its_lines(self) -> str:
        """Return the text with so many lines before it that the item is on its own ones."""
        return "\n" * (self.above - self.text.count("\n", 0, self.start)) + self.text


@dataclass(frozen=True, slots=True)
class Cut:
    """``frame`` has what is no item, on the lines that it has in the file.

    ``stubs`` are the places in the frame where a section's items were.
    """

    frame: str
    stubs: dict[str, Place] = field(default_factory=dict)
    pieces: dict[str, list[Piece]] = field(default_factory=dict)


def cut_items(text: str) -> Cut | None:
    """Return the pieces of a text; None where it has none, or where they say nothing alone."""
    text = f"\n{text}"
    if any(mark in text for mark in _OTHER_RULES):
        return None
    anchored, kept, position = _Anchored(), list[str](), 1
    stubs, pieces = dict[str, Place](), dict[str, list[Piece]]()
    for section in _SECTION.finditer(text):
        below = _TOP.search(text, section.end())
        end = below.start() + 1 if below else len(text)
        first = _ITEM.search(text, section.end(), end)
        name = section[1]
        if first is None or name in pieces:
            return None
        start = first.start() + 1
        above = text.count("\n", 1, start)
        found = _pieces(text, first, end, above)
        pieces[name] = [anchored.with_references(piece) for piece in found]
        stubs[name] = Place(above + 1, len(first[0]) + 1)  # and a blank
        blank = "\n" * text.count("\n", start, end)
        kept += [text[position:start], f"{first[0][1:]} {_STUB}{blank}"]
        position = end
    frame = "".join((*kept, text[position:]))
    if not pieces or anchored.many or _REFERENCE.search(frame):
        return None
    return Cut(frame, stubs, pieces)


def _pieces(text: str, first: re.Match[str], end: int, above: int) -> Iterator[Piece]:
    item = re.compile(rf"{first[0]}(?=[ \n])")
    starts = [match.start() + 1 for match in item.finditer(text, first.start(), end)]
    for start, stop in pairwise((*starts, end)):
        piece = text[start:stop]
        yield Piece(piece, above)
        above += piece.count("\n")


class _Anchored:
    """The items so far that may have anchors, which those after them may refer to."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    @property
    def many(self) -> bool:
        """Say whether there are so many that it does not pay."""
        return len(self.texts) > _MOST_ANCHORED

    def with_references(self, piece: Piece) -> Piece:
        """Return the item with those that it may refer to."""
        text, before = piece.text, "".join(self.texts)
        items = len(self.texts) + 1
        if not self.many and "&" in text and _ANCHOR.search(text):
            self.texts.append(text)
        if not before or self.many or "*" not in text or not _ALIAS.search(text):
            return piece
        return Piece(before + text, piece.above, items, len(before))
