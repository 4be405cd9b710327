"""The plain data of a YAML text, with the line and column of every key and value.

It owns how a place is named and found. ``build`` makes trees.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, TypeAlias

from ruamel.yaml.nodes import Node

from lb_xdp.config.wording import key_name
from lb_xdp.errors import ConfigProblem

Loc: TypeAlias = tuple[str | int, ...]


class Place(NamedTuple):
    """A place in the file; both count from 1."""

    line: int
    column: int


class Finding(NamedTuple):
    """Something wrong, or odd, at a value, or at its key."""

    loc: Loc
    message: str
    on_key: bool = False


class Places(Protocol):
    """Who knows where a value stands. See ``Tree``."""

    def line(self, loc: Loc) -> int: ...  # noqa: D102 - see Tree


@dataclass(slots=True)
class Tree:
    """The data of one file and where each part of it stands.

    ``values`` and ``keys`` have the nodes, which know their places: few of them are ever asked.
    Keys of mappings are in snake_case in ``data`` and in every ``Loc``; ``spelling`` keeps those
    that the file spells otherwise. ``guessed`` are keys that are misspelled in the file: that is a
    problem, but what stands below them is read, so that one typo makes one message.
    ``problems`` are those found so far.
    """

    source: str
    data: object = None
    values: dict[Loc, Node | None] = field(default_factory=dict)
    keys: dict[Loc, Node] = field(default_factory=dict)
    spelling: dict[Loc, str] = field(default_factory=dict)
    guessed: set[Loc] = field(default_factory=set)
    problems: list[ConfigProblem] = field(default_factory=list)

    def problem(self, loc: Loc, message: str, *, on_key: bool = False) -> ConfigProblem:
        """Return a problem at the value at ``loc``, or at its key.

        A ``loc`` that the file does not have (a missing key, a default) moves up to the nearest
        value that contains it, so that an editor always jumps somewhere useful.
        """
        while loc not in self.values:
            loc = loc[:-1]
        place = place_of(self.keys.get(loc, self.values[loc]) if on_key else self.values[loc])
        return ConfigProblem(self.source, place.line, place.column, self.path(loc), message)

    def judged(self, finding: Finding) -> ConfigProblem:
        """Return what was found as a problem with its place."""
        return self.problem(finding.loc, finding.message, on_key=finding.on_key)

    def path(self, loc: Loc) -> str:
        """Return ``services[0].maxConnections``: keys as the file spells them."""
        text = ""
        for end, step in enumerate(loc, start=1):
            if isinstance(step, int):
                text += f"[{step}]"
            else:
                text += f".{key_name(self.spelling.get(loc[:end], step))}"
        return text.removeprefix(".")

    def line(self, loc: Loc) -> int:
        """Return the line of the value at ``loc`` or of the nearest value that contains it."""
        while loc not in self.values:
            loc = loc[:-1]
        return place_of(self.values[loc]).line


def place_of(node: Node | None) -> Place:
    """Return where a node stands; an empty file has none."""
    if node is None:
        return Place(1, 1)
    mark = node.start_mark
    return Place(mark.line + 1, mark.column + 1)
