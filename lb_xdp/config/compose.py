"""YAML text as nodes, which know where they stand.

Owns how ruamel.yaml is asked. What the nodes mean is ``tree``'s part; what it complains about,
``syntax`` puts into words.
"""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any

from _ruamel_yaml import CParser
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import Node, ScalarNode
from ruamel.yaml.resolver import VersionedResolver

BROKEN = (YAMLError, RecursionError, ValueError, ArithmeticError, LookupError)
"""What reading may raise: ruamel lets bare Python errors through for some escapes and numbers."""

_DIRECTIVE = re.compile(r"^%", re.MULTILINE)


def compose(text: str) -> Node | None:
    """Return the root node, None where there is none. Raises one of ``BROKEN``.

    What libyaml refuses is read again in Python, whose complaints ``syntax`` knows, in ten times
    the time; so is a file with a directive, which could ask for the rules of YAML 1.1.
    """
    with suppress(*BROKEN):
        return compose_quickly(text)
    yaml = YAML(typ="safe", pure=True)
    yaml.composer.warn_double_anchors = False
    root: Node | None = yaml.compose(text)
    return root


def compose_quickly(text: str) -> Node | None:
    """Return the same by libyaml alone. Raises one of ``BROKEN`` where that does not do."""
    if _DIRECTIVE.search(text):
        raise ValueError("a directive")
    root: Node | None = _Parser(text).get_single_node()
    return root


class _Parser(CParser):  # type: ignore[misc]  # the C part of ruamel.yaml has no types
    """libyaml, and of ruamel's resolver just what it asks for.

    Tags of scalars are remembered: in a large file most of them come again and again. Tags by path
    (``descend_resolver``) are a thing that nobody has asked for here.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._resolver = VersionedResolver()
        self._known: dict[tuple[object, ...], object] = {}

    def resolve(self, kind: type, value: str, implicit: tuple[bool, bool]) -> object:
        """Return the tag of a node that has none."""
        key = (kind, value, *implicit) if kind is ScalarNode else (kind,)
        tag = self._known.get(key)
        if tag is None:
            tag = self._known[key] = self._resolver.resolve(kind, value, implicit)
        return tag

    def descend_resolver(self, _node: Any, _index: Any) -> None:
        """Take no notice of where a node stands."""

    def ascend_resolver(self) -> None:
        """Take no notice of where a node stands."""
