"""Overrides over HTTP: what is asked of backends at run time, by whom, and until when.

Owns the routes, the form of their bodies and of their answers, and the name of who asks. It
refuses to judge whether what is asked fits the gateway: ``core.override`` does, and its error says
what does.

    GET    /v1/overrides                       all that hold
    DELETE /v1/overrides                       the file holds again, for all backends
    PUT    /v1/overrides/{service}/{backend}   {"admin": ..., "weight": ..., "reason": ...,
                                               "expires": ...}, admin or weight at least
    DELETE /v1/overrides/{service}/{backend}   the file holds again; with ?kind= for one thing

PUT answers with what then holds of the backend, DELETE with what no longer does.
"""

from __future__ import annotations

import asyncio
import json
import math
import pwd
import socket
import struct
import time
from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol

from aiohttp import web

from lb_xdp.core.durations import parse_duration_s
from lb_xdp.core.override import Kind, Override, Overrides, Subject
from lb_xdp.core.snapshot import Admin
from lb_xdp.errors import RequestError, UnknownNameError

LONGEST_REASON = 200
LONGEST_S = 10 * 365 * 86_400.0
_KEYS = ("admin", "weight", "reason", "expires")
_CREDENTIALS = struct.Struct("=iII")  # struct ucred of unix(7): pid, uid, gid


class OverridesKeeper(Protocol):
    """What the routes need of the gateway; see ``daemon.Daemon``."""

    def overrides(self) -> Overrides:
        """Return what was asked for and still holds."""
        ...

    async def set_overrides(self, *overrides: Override) -> None:
        """Let these hold, all or none. Raises UnknownNameError, UnfitOverrideError, StoreError."""
        ...

    async def clear_overrides(self, *subjects: Subject, author: str = "") -> None:
        """Let the file hold again, for all or none. Raises UnknownNameError, StoreError."""
        ...


def routes(keeper: OverridesKeeper) -> list[web.RouteDef]:
    """Return the routes over ``keeper``."""
    handlers = _Handlers(keeper)
    one = "/v1/overrides/{service}/{backend}"
    return [
        web.get("/v1/overrides", handlers.show),
        web.delete("/v1/overrides", handlers.clear_all),
        web.put(one, handlers.put),
        web.delete(one, handlers.clear),
    ]


class _Handlers:
    def __init__(self, keeper: OverridesKeeper) -> None:
        self._keeper = keeper

    async def show(self, _request: web.Request) -> web.Response:
        return _answer(self._keeper.overrides())

    async def put(self, request: web.Request) -> web.Response:
        service, backend = _names(request)
        wish = wish_of(_parse(await request.read()))
        author = await author_of(request)
        await self._keeper.set_overrides(
            *wish.overrides(service, backend, author=author, now_s=time.time())
        )
        return _answer(self._keeper.overrides().about(service, backend))

    async def clear(self, request: web.Request) -> web.Response:
        held = self._keeper.overrides()
        there = held.about(*_names(request))
        kind = _kind(request)
        cleared = [o for o in there if kind in {None, o.subject.kind}]
        if not cleared:
            raise UnknownNameError(_none_there("/".join(_names(request)), kind, held))
        return await self._clear(request, cleared)

    async def clear_all(self, request: web.Request) -> web.Response:
        return await self._clear(request, list(self._keeper.overrides()))

    async def _clear(self, request: web.Request, cleared: list[Override]) -> web.Response:
        if cleared:
            author = await author_of(request)
            await self._keeper.clear_overrides(*(o.subject for o in cleared), author=author)
        return _answer(cleared)


class Wish(NamedTuple):
    """What a body asks for. ``lasts_s`` is seconds from now on, None for ever."""

    admin: str | None
    weight: str | None
    reason: str
    lasts_s: float | None

    def overrides(
        self, service: str, backend: str, *, author: str, now_s: float
    ) -> tuple[Override, ...]:
        """Return an override for each thing that is asked for; ``now_s`` is the time of day."""
        end_s = None if self.lasts_s is None else now_s + self.lasts_s
        asked = ((Kind.ADMIN, self.admin), (Kind.WEIGHT, self.weight))
        return tuple(
            Override(Subject(service, backend, kind), value, author, self.reason, now_s, end_s)
            for kind, value in asked
            if value is not None
        )


def wish_of(document: object) -> Wish:
    """Return what a JSON body asks for. Raises RequestError that says what is allowed."""
    if not isinstance(document, dict):
        raise RequestError(f"the body is no JSON object; allowed keys are {', '.join(_KEYS)}")
    unknown = [key for key in document if key not in _KEYS]
    if unknown:
        raise RequestError(
            f"unknown key {_quoted(unknown[0])}; allowed keys are {', '.join(_KEYS)}"
        )
    if not {"admin", "weight"} & document.keys():
        raise RequestError("nothing is asked for: give admin, weight or both")
    wish = Wish(
        _admin(document["admin"]) if "admin" in document else None,
        _weight(document["weight"]) if "weight" in document else None,
        _reason(document.get("reason", "")),
        _lasts_s(document["expires"]) if "expires" in document else None,
    )
    if wish.admin == Admin.READY and wish.weight is None and wish.lasts_s is not None:
        raise RequestError("expires: ready is what a backend is without an override, it never ends")
    return wish


def _admin(value: object) -> str:
    allowed = [admin.value for admin in Admin]
    if not isinstance(value, str) or value not in allowed:
        raise RequestError(f"admin: {_quoted(value)} is not allowed, one of {', '.join(allowed)}")
    return value


def _weight(value: object) -> str:
    """Return the digits; which numbers fit is for the gateway to say."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise RequestError(f"weight: {_quoted(value)} is not allowed, an integer is")
    return _quoted(value)


def _reason(value: object) -> str:
    if not isinstance(value, str) or len(value) > LONGEST_REASON or not value.isprintable():
        raise RequestError(
            f"reason: a text of one line and at most {LONGEST_REASON} characters is allowed"
        )
    return value


def _lasts_s(value: object) -> float:
    seconds: float | None = None
    if isinstance(value, str):
        seconds = parse_duration_s(value)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value) if abs(value) <= LONGEST_S else math.inf
    if seconds is None or not 0 < seconds <= LONGEST_S:
        raise RequestError(
            f"expires: {_quoted(value)} is not allowed, a time from now on is, up to ten years: "
            "90s, 30min, 1h, or a number of seconds"
        )
    return seconds


def _parse(body: bytes) -> object:
    try:
        document: object = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the body is no JSON ({error})") from error
    return document


def _names(request: web.Request) -> tuple[str, str]:
    return request.match_info["service"], request.match_info["backend"]


def _kind(request: web.Request) -> Kind | None:
    unknown = [key for key in request.query if key != "kind"]
    value = request.query.get("kind")
    if unknown or (value is not None and value not in list(Kind)):
        wrong = unknown[0] if unknown else f"kind={value}"
        raise RequestError(f"{_quoted(wrong)} is not allowed, kind=admin and kind=weight are")
    return None if value is None else Kind(value)


def _none_there(name: str, kind: Kind | None, held: Overrides) -> str:
    there = ", ".join(str(override.subject) for override in held) or "none"
    return f"there is no override {name}{f' {kind}' if kind else ''}; overrides: {there}"


def _quoted(value: object) -> str:
    """Return the JSON of a value, shortened: it may be anything that somebody sent."""
    text = json.dumps(value)
    return text if len(text) <= LONGEST_REASON else f"{text[:LONGEST_REASON]}..."


def _answer(overrides: Iterable[Override]) -> web.Response:
    return web.json_response({"overrides": [override_to_json(one) for one in overrides]})


def override_to_json(override: Override) -> dict[str, Any]:
    """Return an override as JSON values, flat."""
    return {
        "service": override.subject.service,
        "backend": override.subject.backend,
        "kind": override.subject.kind.value,
        "value": override.value,
        "author": override.author,
        "reason": override.reason,
        "at_timestamp_s": override.at_timestamp_s,
        "expires_timestamp_s": override.expires_timestamp_s,
    }


async def author_of(request: web.Request) -> str:
    """Return the user at the other end of the socket, as ``alice (uid 1000)`` (unix(7))."""
    channel = request.get_extra_info("socket")
    raw = channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    # In a thread: the user's name may come from another machine (nsswitch.conf).
    return await asyncio.to_thread(_user, _CREDENTIALS.unpack(raw)[1])


def _user(uid: int) -> str:
    try:
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"
