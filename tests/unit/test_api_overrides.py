"""The routes of overrides: what they take, what they refuse and in which words, who is noted."""

from __future__ import annotations

import json
import os
import pwd
import time
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from lb_xdp.api.server import serve
from lb_xdp.core.override import Kind, Override, Overrides, Subject
from lb_xdp.errors import LbError, StoreError, UnfitOverrideError, UnknownNameError
from tests.support.controller import FakeController

ME = f"{pwd.getpwuid(os.getuid()).pw_name} (uid {os.getuid()})"
WEB1 = "/v1/overrides/web/web1"


def held(*asked: tuple[str, Kind, str]) -> Overrides:
    """Return overrides of backends of ``web``."""
    return Overrides().having(
        *(Override(Subject("web", name, kind), value, "x", "", 1.0) for name, kind, value in asked)
    )


THREE = (
    ("web1", Kind.ADMIN, "drain"),
    ("web1", Kind.WEIGHT, "50"),
    ("web2", Kind.ADMIN, "maint"),
)


class Api:
    """A served controller, and requests to it."""

    def __init__(self, path: Path, controller: FakeController) -> None:
        self.path = path
        self.controller = controller

    def served(self) -> AbstractAsyncContextManager[None]:
        return serve(self.path, self.controller)

    async def ask(self, method: str, target: str, body: Any = None) -> tuple[int, dict[str, Any]]:
        """Send a request; a body that is no bytes goes as JSON."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connector = aiohttp.UnixConnector(str(self.path))
        async with (
            self.served(),
            aiohttp.ClientSession(connector=connector) as session,
            session.request(method, f"http://localhost{target}", data=data) as answer,
        ):
            return answer.status, await answer.json()


@pytest.fixture
def api(tmp_path: Path) -> Api:
    return Api(tmp_path / "api.sock", FakeController())


async def test_both_kinds_are_set_at_once(api: Api) -> None:
    """Admin state and weight are one change, with reason, expiry and the peer as author."""
    before_s = time.time()
    body = {"admin": "drain", "weight": 50, "reason": "new disks", "expires": "1h"}
    status, answer = await api.ask("PUT", WEB1, body)
    assert status == 200
    assert api.controller.calls == [
        f"set web/web1 admin drain by {ME}: new disks, web/web1 weight weight 50 by {ME}: new disks"
    ]
    admin, weight = answer["overrides"]
    assert (admin["kind"], admin["value"], admin["author"]) == ("admin", "drain", ME)
    assert (weight["kind"], weight["value"], weight["reason"]) == ("weight", "50", "new disks")
    assert before_s <= admin["at_timestamp_s"] <= time.time()
    assert admin["expires_timestamp_s"] == admin["at_timestamp_s"] + 3600
    assert (await api.ask("GET", "/v1/overrides"))[1] == answer


async def test_seconds_are_a_time_too(api: Api) -> None:
    """A number is seconds; without one the override has no end."""
    _, answer = await api.ask("PUT", WEB1, {"weight": 0, "expires": 1.5})
    (one,) = answer["overrides"]
    assert one["expires_timestamp_s"] == pytest.approx(one["at_timestamp_s"] + 1.5)
    _, answer = await api.ask("PUT", WEB1, {"weight": 0})
    assert answer["overrides"][0]["expires_timestamp_s"] is None


@pytest.mark.parametrize("name", ["10.0.0.11:8080", "[2001:db8::11]:8080", "web@10.0.0.1"])
async def test_names_are_quoted_in_urls(api: Api, name: str) -> None:
    """Colons and brackets arrive as they are meant, quoted or not."""
    quoted = name.replace(":", "%3A").replace("[", "%5B").replace("]", "%5D")
    for written in (name, quoted):
        _, answer = await api.ask("PUT", f"/v1/overrides/web/{written}", {"admin": "maint"})
        assert [one["backend"] for one in answer["overrides"]] == [name]


async def refused(api: Api, status: int, body: Any, words: str) -> None:
    """Assert that nothing reaches the gateway, and that the one form of an error says why."""
    answered, answer = await api.ask("PUT", WEB1, body)
    assert (answered, answer["kind"], answer["exit_code"]) == (status, "RequestError", 1)
    assert words in answer["error"]
    assert answer["place"].startswith("body")
    assert api.controller.calls == []


@pytest.mark.parametrize(
    "body",
    [b"{", b"\xff\xfe\xff", b"[" * 100_000, b'{"weight": 1, "expires": NaN}', b"1" * 5_000],
)
async def test_what_cannot_be_read_is_400(api: Api, body: bytes) -> None:
    """Whatever is no JSON."""
    await refused(api, 400, body, "the body is no JSON")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (None, "give admin, weight or both"),
        ([], "the body is a JSON object"),
        ({"wieght": 1}, "wieght: unknown key; did you mean `weight`?"),
        ({"x" * 99: 1}, "allowed: admin, weight, reason, expires"),
        ({"reason": "why not"}, "give admin, weight or both"),
        ({"admin": "dwon"}, 'admin: "dwon" is not allowed; one of ready, drain, maint, down'),
        ({"admin": ["down"]}, "one of ready, drain, maint, down"),
        ({"admin": None, "weight": 1}, "one of ready, drain, maint, down"),
        ({"weight": "50"}, 'weight: "50" is not allowed; an integer from 0 to 65535'),
        ({"weight": 65_536}, "an integer from 0 to 65535"),
        ({"weight": True}, "weight: true is not allowed"),
        ({"weight": 0.5}, "weight: 0.5 is not allowed"),
        ({"weight": 1, "reason": "a\nb"}, "printable text on one line"),
        ({"weight": 1, "reason": "x" * 201}, "at most 200 characters"),
        ({"weight": 1, "expires": "1 week"}, 'expires: "1 week" is not allowed'),
        ({"weight": 1, "expires": 0}, "such as 90s or 2h, or a number of seconds"),
        ({"weight": 1, "expires": -1}, "expires: -1 is not allowed"),
        ({"weight": 1, "expires": 10**400}, "..."),
        (b'{"weight": 1, "expires": 1e999}', "expires: Infinity is not allowed"),
        ({"weight": 1, "expires": True}, "expires: true is not allowed"),
        ({"weight": 1, "expires": None}, "expires: null is not allowed"),
        ({"admin": "ready", "expires": "1h"}, "ready is what a backend is without an override"),
    ],
)
async def test_what_is_not_allowed_is_422(api: Api, body: Any, words: str) -> None:
    """The message says where, and what is allowed."""
    await refused(api, 422, body, words)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UnknownNameError("there is no service wbe, did you mean web?"), 404),
        (UnfitOverrideError("'65536' is no weight"), 422),
        (StoreError("state.json cannot be written"), 507),
        (LbError("the daemon was told to stop"), 500),
    ],
)
async def test_refusals_have_a_status_each(api: Api, error: LbError, status: int) -> None:
    """The gateway's own words arrive with the status that tells programs what kind it is."""
    api.controller.refusal = error
    answered, document = await api.ask("PUT", WEB1, {"weight": 1})
    assert (answered, document["error"]) == (status, str(error))
    assert document["kind"] == type(error).__name__


@pytest.mark.parametrize(
    ("target", "cleared", "left"),
    [
        (WEB1, "web/web1 admin, web/web1 weight", 1),
        (f"{WEB1}?kind=weight", "web/web1 weight", 2),
        ("/v1/overrides", "web/web1 admin, web/web1 weight, web/web2 admin", 0),
    ],
)
async def test_overrides_are_cleared(api: Api, target: str, cleared: str, left: int) -> None:
    """One kind, both, or all of all backends, at once; the answer is what holds no longer."""
    api.controller.held = held(*THREE)
    status, answer = await api.ask("DELETE", target)
    assert status == 200
    assert api.controller.calls == [f"clear {cleared} by {ME}"]
    assert len(answer["overrides"]) == 3 - left
    assert len((await api.ask("GET", "/v1/overrides"))[1]["overrides"]) == left


async def test_clearing_all_of_nothing_is_done_already(api: Api) -> None:
    """It is no error."""
    status, answer = await api.ask("DELETE", "/v1/overrides")
    assert (status, answer["overrides"]) == (200, [])


async def test_an_override_that_is_not_there_is_404(api: Api) -> None:
    """The message says which there are; a kind that does not exist is refused before."""
    api.controller.held = held(*THREE)
    status, answer = await api.ask("DELETE", "/v1/overrides/web/web2?kind=weight")
    assert status == 404
    assert answer["error"] == (
        "there is no override web/web2 weight; "
        "overrides: web/web1 admin, web/web1 weight, web/web2 admin"
    )
    api.controller.calls.clear()
    for query, words in (
        ("kind=state", 'query.kind: "state" is not allowed; one of admin, weight'),
        ("knid=admin", "query.knid: unknown key; did you mean `kind`?"),
    ):
        status, answer = await api.ask("DELETE", f"{WEB1}?{query}")
        assert (status, answer["error"]) == (422, words)
    assert api.controller.calls == []
