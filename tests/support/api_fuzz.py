"""Requests that nobody would write, made from the API's own description.

This module owns making them; it refuses to judge what is answered. Some fit the description, some
nearly, some not at all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from tests.support.described import description

METHODS = ("GET", "PUT", "POST", "DELETE", "PATCH", "OPTIONS", "HEAD")
ODD_NAMES = ("wbe", "..", "%", "a b", "é", "\x00", "/", "")

PARTS = ("method", "names", "query", "tag", "headers", "body")
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
    if "pattern" in schema:
        return st.from_regex(schema["pattern"], fullmatch=True)
    words = st.sampled_from(["1s", "90s", "5%", "gateway: {}", "192.0.2.0/24"])
    return words | st.text(min_size=1, max_size=20)


def sound(name: str, schema: dict[str, Any], texts: Sequence[str]) -> SearchStrategy[Any]:
    """Return values that a key allows; configurations are whole ones, and nobody waits for long."""
    if name == "wait":
        return st.sampled_from([0, 0.01])
    return st.sampled_from(texts) if name == "text" and texts else fitting(schema)


@st.composite
def objects(draw: DrawFn, properties: dict[str, Any], texts: Sequence[str]) -> dict[str, Any]:
    """Return an object with some of the properties, with values that fit."""
    names = draw(st.lists(st.sampled_from(sorted(properties)), unique=True, max_size=4))
    return {name: draw(sound(name, properties[name], texts)) for name in names}


@st.composite
def odd_objects(draw: DrawFn, properties: dict[str, Any], texts: Sequence[str]) -> dict[str, Any]:
    """Return an object of which one key is another's, or has a value of any kind."""
    found = draw(objects(properties, texts))
    return found | {draw(st.sampled_from(sorted(properties)) | st.text(max_size=8)): draw(values)}


@st.composite
def requests(
    draw: DrawFn, names: Mapping[str, Sequence[str]], texts: Sequence[str] = ()
) -> Request:
    """Return a request of which at most two parts are odd.

    ``names`` are those that are there by their parameters, ``texts`` are configurations to send.
    """
    odd = draw(st.sets(st.sampled_from(PARTS), max_size=2))
    path = draw(st.sampled_from(sorted(description()["paths"])))
    operations = description()["paths"][path]
    method = draw(st.sampled_from(METHODS if "method" in odd else [m.upper() for m in operations]))
    operation = operations.get(method.lower(), next(iter(operations.values())))
    parameters = operation["parameters"]
    target = path
    for name in (each["name"] for each in parameters if each["in"] == "path"):
        known = st.sampled_from(names[name])
        part = draw(st.sampled_from(ODD_NAMES) | st.text(max_size=8) if "names" in odd else known)
        part = part.encode(errors="replace").decode()
        target = target.replace(f"{{{name}}}", quote(part, safe="") or "x", 1)
    query = draw(queries(parameters, odd="query" in odd))
    if query:
        target += "?" + urlencode(query, errors="replace", doseq=draw(st.booleans()))
    headers = draw(odd_headers) if "headers" in odd else {}
    if "tag" in odd:
        headers["If-Match"] = draw(st.sampled_from(ODD_TAGS))
    return Request(method, path, target, draw(bodies(operation, texts, odd="body" in odd)), headers)


@st.composite
def queries(draw: DrawFn, parameters: Sequence[dict[str, Any]], *, odd: bool) -> dict[str, Any]:
    """Return values for some parameters of a query, and perhaps for what is none."""
    found: dict[str, Any] = {}
    for parameter in parameters:
        if parameter["in"] == "query" and draw(st.booleans()):
            fit = sound(parameter["name"], parameter["schema"], ())
            found[parameter["name"]] = draw(fit | st.text(max_size=8) if odd else fit)
    if odd and draw(st.booleans()):
        found[draw(st.text(min_size=1, max_size=5))] = draw(st.text(max_size=5))
    return found


def bodies(
    operation: dict[str, Any], texts: Sequence[str], *, odd: bool
) -> SearchStrategy[bytes | None]:
    """Return bodies that an operation may get, or may not."""
    content = operation.get("requestBody", {}).get("content", {})
    properties = content and content["application/json"]["schema"]["properties"]
    if not odd:
        return objects(properties, texts).map(_json) if properties else st.none()
    anything = st.none() | st.binary(max_size=30) | values.map(_json)
    return odd_objects(properties, texts).map(_json) | anything if properties else anything


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


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
