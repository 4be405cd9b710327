"""A text read as a whole: to a ``Config``, or to every problem that it has.

It owns the order of the steps: syntax, shape, comparisons, conversion. Each step is a module.
"""

from __future__ import annotations

from lb_xdp.config.build import read_tree
from lb_xdp.config.check import find_problems, find_warnings
from lb_xdp.config.convert import to_config
from lb_xdp.config.draft import draft_of
from lb_xdp.config.schema import known_keys
from lb_xdp.config.shape import validate_shape
from lb_xdp.core.model import Config
from lb_xdp.errors import InvalidConfigError


def read_whole(text: str, source: str) -> Config:
    """Return the configuration that ``text`` holds; ``source`` names it in messages.

    Raises InvalidConfigError with all problems, sorted by place.
    """
    tree = read_tree(text, source, known_keys)
    root, shape_problems = validate_shape(tree)
    draft = draft_of(tree.data)
    problems = {*tree.problems, *shape_problems, *map(tree.judged, find_problems(draft, tree))}
    if problems or root is None:
        raise InvalidConfigError(sorted(problems))
    warnings = sorted(map(tree.judged, find_warnings(draft)))
    return to_config(root, source, tuple(map(str, warnings)))
