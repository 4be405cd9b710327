"""The table of routes: described as it is, revisions, and every status that a caller can meet."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from lb_xdp.api import reference
from lb_xdp.api.openapi import describe
from lb_xdp.api.routes import ROUTES
from lb_xdp.api.server import BODY_BYTES_MAX, make_app
from lb_xdp.core.override import Kind
from lb_xdp.errors import HostError, InvalidConfigError, LbError, NotNowError, StoppedError
from tests.support.controller import FakeController
from tests.support.described import Answer, check, description, send, served

WEB1 = "/v1/overrides/web/web1"
TEMPLATE = "/v1/overrides/{service}/{backend}"
DRAIN = b'{"admin": "drain"}'


ROOT = Path(__file__).parents[2]


@pytest.fixture
def controller() -> FakeController:
    return FakeController()


@pytest.fixture
def path(tmp_path: Path, controller: FakeController) -> Iterator[Path]:
    with served(tmp_path / "api.sock", controller):
        yield tmp_path / "api.sock"


def put(path: Path, headers: Mapping[str, str], body: bytes = DRAIN) -> Answer:
    """Ask for a drain, and see that the answer is as described."""
    answer = send(path, "PUT", WEB1, body, headers)
    check("PUT", TEMPLATE, answer)
    return answer


def test_the_description_is_served(path: Path) -> None:
    """A client gets the description of just these routes."""
    answer = send(path, "GET", "/v1/openapi.json")
    assert answer.status == 200
    assert answer.document == description()


def test_the_page_has_every_route(tmp_path: Path) -> None:
    """docs/api.md has the tables made from the routes, and the command renews them."""
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert page == reference.insert(page), "run: python -m lb_xdp.api.reference docs/api.md"
    old = tmp_path / "api.md"
    old.write_text(f"before\n{reference.BEGIN}\nold\n{reference.END}\nafter\n")
    assert reference.main([str(old)]) == 0
    assert reference.render() in old.read_text()
    with pytest.raises(LbError, match="no place for the tables"):
        reference.insert("# A page\n")


def test_every_route_is_described_and_answered(controller: FakeController) -> None:
    """Server and description have the same paths and methods, each with a name of its own."""
    told = {(m.upper(), path) for path, item in description()["paths"].items() for m in item}
    router = make_app(controller).router
    answered = {(r.method, r.resource.canonical) for r in router.routes() if r.resource}
    assert told == {(route.method, route.path) for route in ROUTES}
    assert {pair for pair in answered if pair[0] != "HEAD"} == told
    assert len({route.name for route in ROUTES}) == len(ROUTES)


def test_the_description_has_every_part_of_a_route() -> None:
    """Parameters of path and query, body, If-Match of changes, and statuses."""
    for route in ROUTES:
        operation = description()["paths"][route.path][route.method.lower()]
        places = {(each["name"], each["in"]) for each in operation["parameters"]}
        wanted = {(name, "path") for name in route.parameters}
        wanted |= {(name, "query") for name in route.query}
        wanted |= {("If-Match", "header")} if route.changes else set()
        assert places == wanted
        assert ("requestBody" in operation) is (route.body is not None)
        assert {"200", "400", "401", "422"} <= operation["responses"].keys()
        assert ("412" in operation["responses"]) is route.changes


def test_schemas_are_schemas() -> None:
    """Each is valid JSON Schema 2020-12, as OpenAPI 3.1 has it, and each reference leads to one."""
    schemas = description()["components"]["schemas"]
    for schema in schemas.values():
        Draft202012Validator.check_schema(schema)
    text = json.dumps(describe(ROUTES))
    named = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert named == schemas.keys()


def test_every_get_answers_as_described(path: Path) -> None:
    """With names that are there, without any query."""
    names = {"service": "web", "backend": "web1", "pool": "web"}
    for route in ROUTES:
        if route.method == "GET" and route.path != "/v1/openapi.json":
            answer = send(path, "GET", route.path.format(**names))
            assert answer.status == 200
            assert answer.headers["cache-control"] == "no-store"
            check("GET", route.path, answer)


def test_a_change_that_saw_another_state_is_412(path: Path, controller: FakeController) -> None:
    """The tag of any answer goes for the next change, once; then nothing is changed any more."""
    seen = send(path, "GET", "/v1/status").headers["etag"]
    assert send(path, "GET", "/v1/overrides").headers["etag"] == seen
    first = put(path, {"If-Match": seen})
    assert first.status == 200
    again = put(path, {"If-Match": seen}, b'{"admin": "down"}')
    assert (again.status, again.document["kind"]) == (412, "StaleError")
    assert [held.value for held in controller.held] == ["drain"]
    for method, target in (
        ("DELETE", WEB1),
        ("DELETE", "/v1/overrides"),
        ("POST", "/v1/reload"),
        ("POST", "/v1/detach"),
    ):
        assert send(path, method, target, headers={"If-Match": seen}).status == 412
    assert len(controller.held) == 1
    assert put(path, {"If-Match": first.headers["etag"]}, b'{"weight": 5}').status == 200
    assert {held.subject.kind for held in controller.held} == set(Kind)


@pytest.mark.parametrize(
    ("tags", "status"),
    [
        ("*", 200),
        ("SEEN", 200),
        ('"x", SEEN', 200),
        ("W/SEEN", 412),
        ('""', 412),
        ("x", 400),
        ('"x', 400),
    ],
)
def test_if_match_is_read_as_http_has_it(path: Path, tags: str, status: int) -> None:
    """Lists and the star; a weak tag matches nothing (RFC 9110, 13.1.1)."""
    seen = send(path, "GET", "/v1/status").headers["etag"]
    assert put(path, {"If-Match": tags.replace("SEEN", seen)}).status == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Content-Type": "application/json; charset=utf-8"}, 200),
        ({"Content-Type": "application/merge-patch+json"}, 200),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 200),
        ({"Content-Type": "text/xml"}, 415),
        ({"Content-Type": "application/json", "Content-Encoding": "gzip"}, 415),
    ],
)
def test_bodies_are_json(
    path: Path, controller: FakeController, headers: dict[str, str], status: int
) -> None:
    """What says of itself that it is something else is refused; curl's default is let pass."""
    assert put(path, headers).status == status
    assert len(controller.held) == (status == 200)


def test_a_body_that_is_too_large_is_413(path: Path, controller: FakeController) -> None:
    """It is not read to its end, and nothing comes of it."""
    answer = put(path, {}, b'{"reason": "' + b"x" * BODY_BYTES_MAX + b'"}')
    assert (answer.status, answer.document["kind"]) == (413, "HTTPRequestEntityTooLarge")
    assert controller.calls == []


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (NotNowError("a reload waits"), 409),
        (HostError("eth9 has gone"), 409),
        (InvalidConfigError([]), 422),
        (StoppedError("told to stop"), 503),
    ],
)
def test_what_cannot_be_done_has_a_status(
    path: Path, controller: FakeController, error: LbError, status: int
) -> None:
    """Programs tell by the status what kind of refusal it is."""
    controller.refusal = error
    answer = send(path, "POST", "/v1/reload")
    check("POST", "/v1/reload", answer)
    assert (answer.status, answer.document["kind"]) == (status, type(error).__name__)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("/v1/services/wbe", "there is no service wbe; did you mean web? services: web"),
        ("/v1/services/web/backends/x", "service web has no backend x; backends: web1, web2"),
        ("/v1/pools/p", "there is no pool p; pools: web"),
        ("/v1/overrides/web/web9", "service web has no backend web9; did you mean web"),
        ("/v1/services/%0A%1b", r'there is no service "\n\u001b"; services: web'),
    ],
)
def test_names_that_are_not_there_are_404(path: Path, target: str, words: str) -> None:
    """The message says which there are, and has nothing that a terminal would act on."""
    answer = send(path, "GET", target)
    assert answer.status == 404
    assert answer.document["error"].startswith(words)


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x00\xff\r\n\r\n",
        b"GET /v1/ping SMTP\r\n\r\n",
        b"GET /v1/ping HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
        b"PUT /v1/overrides/web/web1 HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"PUT /v1/overrides/a/b HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_what_is_no_http_is_400(path: Path, controller: FakeController, garbage: bytes) -> None:
    """Whoever speaks something else is told so, and nobody else notices."""
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.settimeout(10)
        stranger.connect(str(path))
        stranger.sendall(garbage)
        assert stranger.recv(4096).startswith((b"HTTP/1.1 400", b"HTTP/1.0 400"))
    assert send(path, "GET", "/v1/ping").status == 200
    assert controller.calls == []
