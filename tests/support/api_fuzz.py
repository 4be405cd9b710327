"""Requests that nobody would write, made from the API's own description.

This module owns making them; it refuses to judge what is answered. Some fit the description, some
nearly, some not at all.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from tests.support.described import description

METHODS = ("GET", "PUT", "POST", "DELETE", "PATCH", "OPTIONS", "HEAD")
ODD_NAMES = ("wbe", "..", "%", "a b", "é", "\x00", "/", "")

ODD_TAGS = ("*", '"x"', "x", '"', 'W/"x"', '"a", "b"', ", ,")


class Request(NamedTuple):
    """``path`` is that of the description, ``target`` what stands in the request."""

    method: str
    path: str
    target: str
    body: bytes | None
    headers: dict[str, str]


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=True)
    | st.text(max_size=20)
    | st.sampled_from(["drain", "ready", "down", "60s", "2h", "5%", "0", "gateway: {}", "1e999"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


def fitting(schema: dict[str, Any]) -> SearchStrategy[Any]:
    """Return values that a schema allows, for the schemas that requests have."""
    if "anyOf" in schema:
        return st.one_of([fitting(each) for each in schema["anyOf"]])
    match schema.get("type"):
        case None:
            return st.sampled_from(schema["enum"])
        case "integer":
            return st.integers(schema["minimum"], schema["maximum"])
        case "number":
            return st.floats(schema["minimum"], schema["maximum"])
    words = st.sampled_from(["1s", "90s", "5%", "gateway: {}", "192.0.2.0/24"])
    return words | st.text(min_size=1, max_size=20)


def told(name: str, schema: dict[str, Any]) -> SearchStrategy[Any]:
    """Return values for a parameter of a query; nobody waits for long."""
    return st.sampled_from([0, 0.01]) if name == "wait" else fitting(schema)


def _value(name: str, schema: dict[str, Any], texts: Sequence[str]) -> SearchStrategy[Any]:
    """Return values for a key of a body: most fit, and a configuration is a whole one then."""
    fit = st.sampled_from(texts) if name == "text" and texts else fitting(schema)
    return st.one_of(fit, fit, fit, fit, values)


@st.composite
def objects(draw: DrawFn, properties: dict[str, Any], texts: Sequence[str] = ()) -> dict[str, Any]:
    """Return an object with some of the properties, with values that fit or do not."""
    names = draw(st.lists(st.sampled_from(sorted(properties)), unique=True, max_size=4))
    found = {name: draw(_value(name, properties[name], texts)) for name in names}
    if draw(st.integers(0, 9)) == 0:
        found[draw(st.text(max_size=8))] = draw(values)
    return found


@st.composite
def requests(draw: DrawFn, names: Sequence[str], texts: Sequence[str] = ()) -> Request:
    """Return a request. ``names`` are there, ``texts`` are configurations to send."""
    path = draw(st.sampled_from(sorted(description()["paths"])))
    operations = description()["paths"][path]
    known = [method.upper() for method in operations]
    method = draw(st.sampled_from([*known * 8, *METHODS]))
    operation = operations.get(method.lower(), next(iter(operations.values())))
    target = path
    query: dict[str, Any] = {}
    headers: dict[str, str] = {}
    for parameter in operation["parameters"]:
        name, place = parameter["name"], parameter["in"]
        if place == "path":
            part = draw(st.sampled_from(names) | st.sampled_from(ODD_NAMES) | st.text(max_size=8))
            part = part.encode(errors="replace").decode()
            target = target.replace(f"{{{name}}}", quote(part, safe="") or "x", 1)
        elif place == "query" and draw(st.booleans()):
            query[name] = draw(told(name, parameter["schema"]) | st.text(max_size=8))
        elif place == "header" and draw(st.integers(0, 3)) == 0:
            headers[name] = draw(st.sampled_from(ODD_TAGS))
    if draw(st.integers(0, 9)) == 0:
        query[draw(st.text(min_size=1, max_size=5))] = draw(st.text(max_size=5))
    if query:
        target += "?" + urlencode(query, errors="replace", doseq=draw(st.booleans()))
    return Request(
        method,
        path,
        target,
        draw(bodies(operation, texts)),
        headers | draw(st.just({}) | st.just({}) | odd_headers),
    )


def bodies(operation: dict[str, Any], texts: Sequence[str] = ()) -> SearchStrategy[bytes | None]:
    """Return bodies that an operation may get, or may not."""
    anything = st.none() | st.binary(max_size=30) | values.map(lambda v: json.dumps(v).encode())
    content = operation.get("requestBody", {}).get("content", {})
    if not content:
        return anything
    properties = content["application/json"]["schema"]["properties"]
    fit = objects(properties, texts).map(lambda found: json.dumps(found).encode())
    return st.one_of(fit, fit, fit, anything)


odd_headers = st.fixed_dictionaries(
    {},
    optional={
        "Content-Type": st.sampled_from(["application/json", "text/x; charset=utf-99", "\xe9"]),
        "Authorization": st.sampled_from(["Bearer", "Bearer x", "Basic eA=="]),
        "Accept": st.sampled_from(["*/*", "text/html", ";;q=x"]),
        "Expect": st.just("100-continue"),
        "Content-Encoding": st.sampled_from(["gzip", "deflate", "identity", "zip"]),
    },
)
