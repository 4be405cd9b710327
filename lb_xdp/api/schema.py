"""JSON Schema of the values that the API answers with, made from their dataclasses.

It describes what ``wire.encode`` makes of a value. It refuses types that it does not know: then
the class has to change, not the description.
"""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

from lb_xdp.core.event import Event

_SPARSE: Mapping[type, Sequence[str]] = {Event: ("number", "timestamp_s", "kind")}
"""What leaves out what says nothing, with the fields that are always there."""

_SCALARS = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}


def reference(kind: type) -> dict[str, Any]:
    """Return the reference to a class's schema among the components."""
    return {"$ref": f"#/components/schemas/{kind.__name__}"}


def components(kinds: Sequence[type]) -> dict[str, Any]:
    """Return the schemas of these dataclasses and of all that they hold, by name."""
    found: dict[str, Any] = {}
    described: dict[str, type] = {}
    waiting = list(kinds)
    while waiting:
        kind = waiting.pop()
        if described.setdefault(kind.__name__, kind) is not kind:
            raise TypeError(f"two classes that the API answers with are called {kind.__name__}")
        if kind.__name__ not in found:
            found[kind.__name__] = _object(kind, waiting)
    return dict(sorted(found.items()))


def _object(kind: type, waiting: list[type]) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    fields = dataclasses.fields(kind)
    return {
        "type": "object",
        "description": inspect.cleandoc(kind.__doc__ or ""),
        "properties": {field.name: _schema(hints[field.name], waiting) for field in fields},
        "required": list(_SPARSE.get(kind, [field.name for field in fields])),
        "additionalProperties": False,
    }


def _schema(hint: Any, waiting: list[type]) -> dict[str, Any]:
    """Return the schema of one annotation; what it refers to is added to ``waiting``."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in {types.UnionType, typing.Union}:
        return {"anyOf": [_schema(argument, waiting) for argument in arguments]}
    if origin in {tuple, list, Sequence} and arguments[1:] in {(), (...,)}:
        return {"type": "array", "items": _schema(arguments[0], waiting)}
    if origin in {dict, Mapping}:
        return {"type": "object", "additionalProperties": _schema(arguments[1], waiting)}
    if isinstance(hint, type):
        return _class(hint, waiting)
    raise TypeError(f"the API has no description of {hint}")


def _class(kind: type, waiting: list[type]) -> dict[str, Any]:
    if kind in _SCALARS:
        return {"type": _SCALARS[kind]}
    if issubclass(kind, StrEnum):
        return {"enum": [member.value for member in kind]}
    if dataclasses.is_dataclass(kind):
        waiting.append(kind)
        return reference(kind)
    raise TypeError(f"the API has no description of {kind}")
