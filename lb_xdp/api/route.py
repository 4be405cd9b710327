"""A route of the API as a value: what is asked, what may be said, what is answered, who does it.

The server and the OpenAPI description are made from the same routes. This module owns reading a
request by its route; it refuses to know any route.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from aiohttp import web

from lb_xdp.api.controller import Controller
from lb_xdp.api.fields import Field, Fields
from lb_xdp.core.wish import Match
from lb_xdp.errors import MediaError, RequestError

_TAGS = re.compile(r'\s*(?:(W/)?"([\x21\x23-\x7e]*)"\s*(?:,\s*|$))', re.ASCII)
_LONGEST_SHOWN = 60
_KINDS = {"application/json", "application/octet-stream", "application/x-www-form-urlencoded"}


@dataclass(frozen=True, slots=True)
class Call:
    """A request as a handler sees it: checked, in our values, with the name of whoever asks."""

    controller: Controller
    path: Mapping[str, str]
    query: Mapping[str, Any]
    body: Mapping[str, Any]
    author: str
    match: Match


Handler = Callable[[Call], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Route:
    """``answer`` is the class of the answer's value, None for a JSON object of no class of ours.

    ``path`` has its parameters in braces. ``changes``: it honours If-Match, and its refusal changes
    nothing.
    """

    method: str
    path: str
    summary: str
    handle: Handler
    answer: type | None
    query: Fields = field(default_factory=dict)
    body: Fields | None = None
    changes: bool = False

    @property
    def parameters(self) -> tuple[str, ...]:
        """Return the names of the parameters in the path."""
        return tuple(re.findall(r"{(\w+)}", self.path))

    @property
    def reads_only(self) -> bool:
        """Whether it is for those who may not write: judging a file of theirs is work as well."""
        return not self.changes and self.body is None

    @property
    def name(self) -> str:
        """Return the operation's name: unique, and fit for generated clients."""
        words = re.findall(r"[a-z]+", self.path.removeprefix("/v1/"))
        return "_".join([self.method.lower(), *words])


def read_query(route: Route, request: web.Request) -> dict[str, Any]:
    """Return the query's values. Raises RequestError."""
    found: dict[str, Any] = {}
    for name, written in request.query.items():
        known = _known(name, route.query, f"query.{_shown(name)}")
        if name in found:
            raise RequestError("is given twice", place=f"query.{name}", malformed=True)
        found[name] = _read(known, known.from_text(written), f"query.{name}")
    return found


async def read_body(route: Route, request: web.Request) -> dict[str, Any]:
    """Return the values of the body, which may be missing. Raises RequestError."""
    if route.body is None:
        return {}
    raw = await _bytes(request)
    if raw.strip():
        _require_json(request)
    document = _parse(raw)
    if not isinstance(document, dict):
        raise RequestError("the body is a JSON object", place="body")
    return {
        name: _read(_known(name, route.body, f"body.{_shown(name)}"), value, f"body.{name}")
        for name, value in document.items()
    }


def _require_json(request: web.Request) -> None:
    """Raise MediaError for a body that says that it is no JSON. curl calls everything a form."""
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise MediaError("compressed bodies are not taken", place="Content-Encoding")
    kind = request.content_type
    if kind not in _KINDS and not kind.endswith("+json"):
        raise MediaError(f"{_shown(kind)} is not taken, application/json is", place="Content-Type")


async def _bytes(request: web.Request) -> bytes:
    try:
        return await request.read()
    except web.RequestPayloadError as error:
        raise RequestError(
            f"the body cannot be read: {error}", place="body", malformed=True
        ) from error


def _parse(raw: bytes) -> object:
    if not raw.strip():
        return {}
    try:
        return json.loads(raw, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the body is no JSON: {error}", place="body", malformed=True) from error


def _no_number(word: str) -> object:
    raise ValueError(f"{word} is no number of JSON")


def _known(name: str, fields: Fields, place: str) -> Field:
    if name in fields:
        return fields[name]
    near = get_close_matches(name[:_LONGEST_SHOWN], fields, n=1)
    hint = f"did you mean `{near[0]}`?" if near else f"allowed: {', '.join(fields) or 'none'}"
    raise RequestError(f"unknown key; {hint}", place=place)


def _read(known: Field, value: object, place: str) -> Any:
    try:
        return known.read(value)
    except ValueError as error:
        shown = _shown(json.dumps(value))
        raise RequestError(f"{shown} is not allowed; {error}", place=place) from error


def _shown(text: str) -> str:
    short = text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."
    return short if short.isprintable() else json.dumps(short)


def read_match(request: web.Request) -> Match:
    """Return the revisions that If-Match names (RFC 9110, 13.1.1). Raises RequestError.

    Weak ones match nothing: the comparison is the strong one.
    """
    written = ",".join(request.headers.getall("If-Match", [])).strip()
    if written in {"", "*"}:
        return None
    tags, end = set(), 0
    while match := _TAGS.match(written, end):
        end = match.end()
        if match.group(1) is None:
            tags.add(match.group(2))
    if end != len(written):
        raise RequestError(
            'is a list of entity tags such as "4f1c", or *', place="If-Match", malformed=True
        )
    return frozenset(tags)
