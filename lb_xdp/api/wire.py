"""Snapshots and errors as JSON values, and back.

This module owns the form that travels over the API socket, for both ends. It refuses to own HTTP.
Keys stand in the order of the dataclass fields, so that two answers can be compared line by line.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from enum import StrEnum
from functools import cache
from typing import Any

from lb_xdp.api.answers import Failure, Problem
from lb_xdp.core.event import Event, to_document
from lb_xdp.core.snapshot import Snapshot
from lb_xdp.errors import ConfigProblem, InvalidConfigError, LbError, RequestError


@cache
def _type_hints_of(kind: type) -> dict[str, Any]:
    """Return the types of a dataclass's fields; resolving them is what decoding spends time on."""
    return typing.get_type_hints(kind)


def snapshot_to_json(snapshot: Snapshot) -> dict[str, Any]:
    """Return the snapshot as JSON values: enums as their values, tuples as lists."""
    document: dict[str, Any] = json.loads(encode(snapshot))
    return document


def encode(answer: object) -> str:
    """Return a dataclass or a JSON value as text. A ``StrEnum`` is a ``str``: json writes it.

    ``dataclasses.asdict`` would copy every value of it first, in Python.
    """
    return json.dumps(answer, default=_fields_of)


def _fields_of(value: Any) -> dict[str, Any]:
    if isinstance(value, Event):
        return to_document(value)
    kind: type = type(value)
    return {name: getattr(value, name) for name in _names_of(kind)}


@cache
def _names_of(kind: type) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(kind))


def snapshot_from_json(document: object) -> Snapshot:
    """Return the snapshot of a daemon's answer.

    Unknown keys are ignored and fields with a default may be missing, so that a command and a
    daemon of neighbouring versions understand each other. Raises LbError when they do not.
    """
    try:
        snapshot: Snapshot = _build(Snapshot, document)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise LbError(
            f"the daemon's status does not fit this command's version ({error}): "
            "install the same lb-xdp for both, then restart the daemon"
        ) from error
    return snapshot


def _build(kind: Any, value: Any) -> Any:
    """Return ``value`` as an instance of ``kind``.

    That is a dataclass, a tuple or mapping of one kind, an enum or a scalar; of ``kind | None``,
    the first one.
    """
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        hints = _type_hints_of(kind)
        names = [field.name for field in dataclasses.fields(kind) if field.name in value]
        return kind(**{name: _build(hints[name], value[name]) for name in names})
    if value is not None and typing.get_origin(kind) is types.UnionType:
        return _build(typing.get_args(kind)[0], value)
    if typing.get_origin(kind) is tuple:
        return tuple(_build(typing.get_args(kind)[0], item) for item in value)
    if typing.get_origin(kind) is Mapping:
        return {key: _build(typing.get_args(kind)[1], item) for key, item in value.items()}
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return kind(value)
    return value


def error_to_json(error: LbError) -> dict[str, Any]:
    """Return a ``Failure`` as JSON values; the place stands in front of the message as well."""
    problems = error.problems if isinstance(error, InvalidConfigError) else ()
    place = error.place if isinstance(error, RequestError) else ""
    failure = Failure(
        error=f"{place.removeprefix('body.')}: {error}" if place else str(error),
        kind=type(error).__name__,
        exit_code=error.exit_code,
        place=place,
        errors=tuple(Problem(**dataclasses.asdict(problem)) for problem in problems),
    )
    return dataclasses.asdict(failure)


def error_from_json(document: dict[str, Any]) -> LbError:
    """Return the error to raise for a daemon's answer, with the exit code that it asks for."""
    problems = document.get("errors")
    if isinstance(problems, list) and problems:
        return InvalidConfigError([_build(ConfigProblem, problem) for problem in problems])
    error = LbError(str(document.get("error", "the daemon refused without saying why")))
    error.exit_code = int(document.get("exit_code", LbError.exit_code))
    return error
