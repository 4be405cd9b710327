"""The API under requests that nobody would write, made from its own description."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from tests.support.controller import FakeController
from tests.support.described import Answer, check, description, send, served

METHODS = ("GET", "PUT", "POST", "DELETE", "PATCH", "OPTIONS", "HEAD")
NAMES = ("web", "web1", "web2", "10.0.0.13:8080", "wbe", "..", "%", "a b", "é", "\x00", "/", "")

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


@st.composite
def objects(draw: DrawFn, properties: dict[str, Any]) -> dict[str, Any]:
    """Return an object with some of the properties, with values that fit or do not."""
    names = draw(st.lists(st.sampled_from(sorted(properties)), unique=True, max_size=4))
    found = {name: draw(fitting(properties[name]) | values) for name in names}
    if draw(st.integers(0, 9)) == 0:
        found[draw(st.text(max_size=8))] = draw(values)
    return found


@st.composite
def requests(draw: DrawFn) -> tuple[str, str, str, bytes | None, dict[str, str]]:
    """Return method, path of the description, target, body and headers."""
    path = draw(st.sampled_from(sorted(description()["paths"])))
    operations = description()["paths"][path]
    known = [method.upper() for method in operations]
    method = draw(st.sampled_from([*known, *known, *known, *METHODS]))
    operation = operations.get(method.lower(), next(iter(operations.values())))
    target = path
    query: dict[str, Any] = {}
    headers: dict[str, str] = {}
    for parameter in operation["parameters"]:
        name, place = parameter["name"], parameter["in"]
        if place == "path":
            part = draw(st.sampled_from(NAMES[:4]) | st.sampled_from(NAMES) | st.text(max_size=8))
            part = part.encode(errors="replace").decode()
            target = target.replace(f"{{{name}}}", quote(part, safe="") or "x", 1)
        elif place == "query" and draw(st.booleans()):
            query[name] = draw(fitting(parameter["schema"]) | st.text(max_size=8))
        elif place == "header" and draw(st.integers(0, 3)) == 0:
            tags = ["*", '"x"', "x", '"', 'W/"x"', '"a", "b"', ", ,"]
            headers[name] = draw(st.sampled_from(tags))
    if draw(st.integers(0, 9)) == 0:
        query[draw(st.text(min_size=1, max_size=5))] = draw(st.text(max_size=5))
    if query:
        target += "?" + urlencode(query, errors="replace", doseq=draw(st.booleans()))
    return method, path, target, draw(bodies(operation)), headers | draw(odd_headers)


def bodies(operation: dict[str, Any]) -> SearchStrategy[bytes | None]:
    """Return bodies that an operation may get, or may not."""
    anything = st.none() | st.binary(max_size=30) | values.map(lambda v: json.dumps(v).encode())
    content = operation.get("requestBody", {}).get("content", {})
    if not content:
        return anything
    properties = content["application/json"]["schema"]["properties"]
    told = objects(properties).map(lambda found: json.dumps(found).encode())
    return st.one_of(told, told, told, anything)


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


def state(controller: FakeController) -> tuple[object, ...]:
    """Return all that a refused call must leave alone."""
    return controller.revision(), tuple(controller.overrides()), controller.waits


@pytest.fixture(scope="module")
def gateway(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Path, FakeController]]:
    """Serve one controller for all requests of this module."""
    controller = FakeController()
    path = tmp_path_factory.mktemp("fuzz") / "api.sock"
    with served(path, controller):
        yield path, controller


@settings(
    max_examples=600,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(request=requests())
def test_no_request_is_a_fault_and_refused_ones_change_nothing(
    gateway: tuple[Path, FakeController],
    request: tuple[str, str, str, bytes | None, dict[str, str]],
) -> None:
    """Whatever is asked: never a 5xx, always an answer as described, no state without a 200."""
    socket, controller = gateway
    method, path, target, body, headers = request
    before = state(controller)
    answer: Answer = send(socket, method, target, body, headers)
    assert answer.status < 500, answer
    if method != "HEAD" and answer.status != 413:
        check(method, path, answer)
    if answer.status != 200 or method == "GET":
        assert state(controller) == before
