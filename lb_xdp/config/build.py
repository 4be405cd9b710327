"""YAML text as a tree of plain data.

It owns syntax: broken YAML, keys given twice, camelCase spellings, aliases without end. It refuses
to know which keys there are and what they mean: that is ``schema``'s part.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from functools import lru_cache

from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.tag import Tag

from lb_xdp.config.compose import BROKEN, compose
from lb_xdp.config.syntax import TOO_DEEP, syntax_problem
from lb_xdp.config.tree import Loc, Place, Tree, place_of
from lb_xdp.config.wording import nearest, quote
from lb_xdp.errors import ConfigProblem, InvalidConfigError

MAX_NODES = 100_000  # after aliases are written out; a full configuration has about 50,000
MAX_DEPTH = 16  # the deepest key of the schema lies at 5; stops an alias that contains itself

_YAML_TAG = "tag:yaml.org,2002:"
_PLAIN_TAGS = {
    _YAML_TAG + kind
    for kind in ("str", "int", "float", "bool", "null", "map", "seq", "timestamp", "merge", "value")
}
_CAMEL_CASE = re.compile(r"[a-z]+(?:[A-Z][a-z0-9]*)+", re.ASCII)


def read_tree(text: str, source: str, known_keys: Callable[[Loc], Collection[str]]) -> Tree:
    """Read ``text``; ``source`` names it in messages.

    ``known_keys`` says which keys a mapping may have; it serves only to recognise misspelled ones.

    Raises InvalidConfigError where it is no YAML at all. Lesser problems are left in the tree.
    """
    try:
        root = compose(text)
    except BROKEN as error:
        raise InvalidConfigError([syntax_problem(error, text, source)]) from error
    return _grown(root, (), source, known_keys)


def read_item(
    text: str, items: int, at: Loc, source: str, known_keys: Callable[[Loc], Collection[str]]
) -> Tree | None:
    """Return the last item of the list that ``text`` holds, as it stands at ``at`` in its file.

    None where it holds anything but ``items`` items. Raises InvalidConfigError where one goes too
    far.
    """
    root = _root_of(text)
    if not isinstance(root, SequenceNode) or root.flow_style or len(root.value) != items:
        return None
    return _grown(root.value[-1], at, source, known_keys)


def read_frame(
    text: str, source: str, known_keys: Callable[[Loc], Collection[str]], stubs: Mapping[str, Place]
) -> Tree | None:
    """Return a file in which a list of one scalar stands for each of the lists in ``stubs``.

    None where it cannot be read, or where one of these is not at the place that ``stubs`` has for
    it: then what stands there in the file may be something else, too. Raises as ``read_item``.
    """
    root = _root_of(text)
    if root is None:
        return None
    tree = _grown(root, (), source, known_keys)
    for key, place in stubs.items():
        listed, stub = tree.values.get((key,)), tree.values.get((key, 0))
        if not isinstance(listed, SequenceNode) or listed.flow_style or len(listed.value) != 1:
            return None
        if not isinstance(stub, ScalarNode) or place_of(stub) != place:
            return None
    return tree


def _root_of(text: str) -> Node | None:
    with suppress(*BROKEN):
        return compose(text)
    return None


def _grown(
    root: Node | None, at: Loc, source: str, known_keys: Callable[[Loc], Collection[str]]
) -> Tree:
    tree = Tree(source, values={(): None})
    if root is not None:
        tree.data = _Builder(tree, known_keys).build(root, at)
    return tree


class _Builder:
    """Walks the nodes of one file once and fills a tree."""

    def __init__(self, tree: Tree, known_keys: Callable[[Loc], Collection[str]]) -> None:
        self._tree = tree
        self._known_keys = known_keys
        self._nodes_left = MAX_NODES
        self._tags: dict[int, tuple[Tag, str]] = {}

    def build(self, node: Node, loc: Loc) -> object:
        self._tree.values[loc] = node
        self._nodes_left -= 1
        if self._nodes_left < 0 or len(loc) > MAX_DEPTH:
            message = TOO_DEEP if self._nodes_left >= 0 else f"more than {MAX_NODES:,} values"
            # No path: it would be long, or go round in a circle.
            raise InvalidConfigError(
                [ConfigProblem(self._tree.source, *place_of(node), "", message)]
            )
        tag = self._tag(node)
        if tag not in _PLAIN_TAGS:
            message = f"the tag {quote(tag)} is not allowed; leave it out"
            self._tree.problems.append(self._tree.problem(loc, message))
        if isinstance(node, MappingNode):
            return self._mapping(node, loc)
        if isinstance(node, SequenceNode):
            return [self.build(child, (*loc, index)) for index, child in enumerate(node.value)]
        return _scalar(tag, str(node.value))

    def _tag(self, node: Node) -> str:
        """Return a node's tag; ``node.tag`` would put it together anew each time."""
        tag = node.ctag
        held = self._tags.get(id(tag))
        if held is None:
            held = self._tags[id(tag)] = (tag, str(tag))  # with the tag, so that its id stays its
        return held[1]

    def _mapping(self, node: MappingNode, loc: Loc) -> dict[str, object]:
        data: dict[str, object] = {}
        known = self._known_keys(loc)
        absent: set[str] | None = None
        for key_node, value_node in node.value:
            key = key_node.value
            if isinstance(key_node, ScalarNode) and key in known and key not in data:
                at: Loc = (*loc, key)  # as nearly all are
            elif (problem := self._unfit_key(key_node, loc)) is not None:
                self._tree.problems.append(problem)
                continue
            else:
                absent = _absent(known, node) if absent is None else absent
                found = self._unusual(key_node, loc, known, data, absent)
                if found is None:
                    continue
                at = found
            self._tree.keys[at] = key_node
            data[str(at[-1])] = self.build(value_node, at)
        return data

    def _unusual(
        self,
        key_node: ScalarNode,
        loc: Loc,
        known: Collection[str],
        data: Collection[str],
        absent: set[str],
    ) -> Loc | None:
        """Return where a key stands that is not spelled as the schema has it, or comes twice.

        None if its value does not count.
        """
        spelling = str(key_node.value)
        # Where any key may stand, as in HTTP headers, it stands as it is spelled.
        key = _snake_case(spelling) if known else spelling
        at = (*loc, key)
        if key not in known and key not in data and (meant := nearest(key, absent)):
            key, at = meant, (*loc, meant)
            self._guess(key_node, spelling, at)
            absent.discard(meant)
        elif key in data:
            self._tree.problems.append(self._twice(key_node, spelling, at))
            return None
        if spelling != key:
            self._tree.spelling[at] = spelling
        return at

    def _guess(self, node: Node, spelling: str, at: Loc) -> None:
        line, column = place_of(node)
        path = self._tree.path((*at[:-1], spelling))
        message = f"unknown key; did you mean `{at[-1]}`?"
        self._tree.problems.append(ConfigProblem(self._tree.source, line, column, path, message))
        self._tree.guessed.add(at)

    def _unfit_key(self, node: Node, loc: Loc) -> ConfigProblem | None:
        if not isinstance(node, ScalarNode):
            message = "a list or mapping cannot be a key; write `key: value`"
        elif self._tag(node) == _YAML_TAG + "merge":
            message = "merge keys (`<<`) are not allowed; refer to a whole value with `*name`"
        else:
            return None
        line, column = place_of(node)
        return ConfigProblem(self._tree.source, line, column, self._tree.path(loc), message)

    def _twice(self, node: Node, spelling: str, at: Loc) -> ConfigProblem:
        first = self._tree.spelling.get(at, at[-1])
        line, column = place_of(node)
        as_what = "" if first == spelling else f" as `{first}`"
        at_first = place_of(self._tree.keys[at]).line
        message = f"this key is given twice; it stands{as_what} on line {at_first}"
        path = self._tree.path((*at[:-1], spelling))
        return ConfigProblem(self._tree.source, line, column, path, message)


def _absent(known: Collection[str], node: MappingNode) -> set[str]:
    """Return the keys that a mapping may have and has not."""
    spellings = (str(key.value) for key, _ in node.value if isinstance(key, ScalarNode))
    return set(known).difference(map(_snake_case, spellings))


@lru_cache(maxsize=1024)  # a file can name keys without end
def _snake_case(key: str) -> str:
    if _CAMEL_CASE.fullmatch(key) is None:
        return key
    return re.sub(r"[A-Z]", lambda match: f"_{match.group().lower()}", key)


def _scalar(tag: str, text: str) -> object:
    """Return the value of a scalar by YAML 1.2's rules; dates stay text."""
    kind = tag.removeprefix(_YAML_TAG)
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    try:
        if kind == "int":
            return _integer(text.replace("_", ""))
        if kind == "float":
            return float(text.replace("_", "").replace(".inf", "inf").replace(".nan", "nan"))
    except ValueError:  # `!!int x`, or more digits than Python converts: judged as text
        return text
    return text


def _integer(text: str) -> int:
    return int(text, 0) if text.lstrip("+-")[:2] in {"0x", "0o", "0b"} else int(text)
