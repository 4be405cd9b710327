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
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.resolver import VersionedResolver
from ruamel.yaml.tag import Tag

BROKEN = (YAMLError, RecursionError, ValueError, ArithmeticError, LookupError)
"""What reading may raise: ruamel lets bare Python errors through for some escapes and numbers."""

_DIRECTIVE = re.compile(r"^%", re.MULTILINE)


def compose(text: str) -> Node | None:
    """Return the root node, None where there is none. Raises one of ``BROKEN``.

    What libyaml refuses is read again in Python, whose complaints ``syntax`` knows, in ten times
    the time; so is a file with a directive, which could ask for the rules of YAML 1.1.
    """
    if not _DIRECTIVE.search(text):
        with suppress(*BROKEN):
            return _quickly(text)
    yaml = YAML(typ="safe", pure=True)
    yaml.composer.warn_double_anchors = False
    root: Node | None = yaml.compose(text)
    return root


def _quickly(text: str) -> Node | None:
    root: Node | None = _Parser(text).get_single_node()
    return root


_RULES = {
    first: [(Tag(suffix=tag), pattern.match) for tag, pattern in rules]
    for first, rules in VersionedResolver().versioned_resolver.items()
}
"""By the first letter of a plain scalar, the tags that it may have, each with its test."""

_DEFAULTS = {
    ScalarNode: VersionedResolver.DEFAULT_SCALAR_TAG,
    SequenceNode: VersionedResolver.DEFAULT_SEQUENCE_TAG,
    MappingNode: VersionedResolver.DEFAULT_MAPPING_TAG,
}


class _Parser(CParser):  # type: ignore[misc]  # the C part of ruamel.yaml has no types
    """libyaml, and of ruamel's resolver just what it asks for.

    Tags by path (``descend_resolver``) are a thing that nobody has asked for here.
    """

    def resolve(self, kind: type[Node], value: str, implicit: tuple[bool, bool]) -> Tag:
        """Return the tag of a node that has none: by its text if that is plain."""
        if kind is ScalarNode and implicit[0]:
            for tag, matches in _RULES.get(value[:1], ()):
                if matches(value):
                    return tag
        return _DEFAULTS[kind]

    def descend_resolver(self, _node: Any, _index: Any) -> None:
        """Take no notice of where a node stands."""

    def ascend_resolver(self) -> None:
        """Take no notice of where a node stands."""
