"""Holds data against the schema and says in plain words where it does not fit.

It owns the translation of pydantic's errors. What involves more than one value is ``check``'s part.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from lb_xdp.config.schema import Root, section_at
from lb_xdp.config.tree import Loc, Tree
from lb_xdp.config.values import PROBLEM
from lb_xdp.config.wording import did_you_mean, not_allowed
from lb_xdp.errors import ConfigProblem


def validate_shape(tree: Tree) -> tuple[Root | None, list[ConfigProblem]]:
    """Return the file as a model, or None and every problem of a single value or key."""
    if tree.data is None:
        return None, [tree.problem((), "the file is empty; it needs `gateway:` and `services:`")]
    if not isinstance(tree.data, dict):
        sentence = not_allowed(tree.data, "the file is a mapping with `gateway:` and `services:`")
        return None, [tree.problem((), sentence)]
    try:
        return Root.model_validate(tree.data), []
    except ValidationError as error:
        details = error.errors(include_url=False, include_context=False)
        return None, [problem for detail in details for problem in _problems(tree, detail)]


def _problems(tree: Tree, detail: ErrorDetails) -> Iterator[ConfigProblem]:
    loc, value = detail["loc"], detail["input"]
    if loc in tree.guessed:
        return
    match detail["type"]:
        case "extra_forbidden":
            yield _unknown_key(tree, loc)
        case "missing":
            yield tree.problem(loc, _missing(loc))
        case "too_short":
            # pydantic counts the items that are left after it refused some: not our complaint.
            if not _at(tree.data, loc):
                yield tree.problem(loc, "an empty list is not allowed; at least one is needed")
        case "tuple_type":
            yield tree.problem(loc, not_allowed(value, "a list"))
        case "model_type":
            yield tree.problem(loc, not_allowed(value, f"a mapping with {_keys(loc)}"))
        case kind:
            message = detail["msg"]
            yield tree.problem(loc, message if kind == PROBLEM else not_allowed(value, message))


def _unknown_key(tree: Tree, loc: Loc) -> ConfigProblem:
    section = section_at(loc[:-1])
    key = str(loc[-1])
    known = list(section.model_fields) if section else []
    hint = did_you_mean(key, known) or f" allowed: {', '.join(known)}"
    return tree.problem(loc, f"unknown key;{hint}", on_key=True)


def _missing(loc: Loc) -> str:
    section = section_at(loc[:-1])
    meaning = section.model_fields[str(loc[-1])].description if section else ""
    return f"the key `{loc[-1]}` is missing: {meaning}"


def _keys(loc: Loc) -> str:
    section = section_at(loc)
    return ", ".join(section.model_fields) if section else "keys"


def _at(data: Any, loc: Loc) -> Any:
    for step in loc:
        data = data[step]
    return data
