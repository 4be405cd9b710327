"""``GET /v1/events``: what happened, from the journal.

Owns the query's words and what is wrong with them. Its answer is ``{"events": [...]}``, oldest
first, each as ``core.event.to_document`` has it; with ``wait``, one that comes as soon as there is
an event (long polling), and is empty when the time is over.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Protocol

from aiohttp import web

from lb_xdp.core.event import Event, EventFilter, EventKind, to_document

NEWEST_MAX = 10_000
WAIT_MAX_S = 60.0
_KINDS = frozenset(kind.value for kind in EventKind)
_KEYS = ("after", "since", "service", "backend", "kind", "newest", "wait")


class EventsSource(Protocol):
    """What the route needs of the gateway."""

    async def events(self, wanted: EventFilter, wait_s: float) -> list[Event]:
        """Return events that are wanted, oldest first; if there is none, wait for one."""
        ...


def parse_query(query: Mapping[str, str], now_s: float) -> tuple[EventFilter, float]:
    """Return what a query asks for, and how long it waits. Raises ValueError with a sentence.

    ``since`` is Unix time, or with a leading ``-`` that many seconds ago.
    """
    if unknown := sorted(query.keys() - set(_KEYS)):
        raise ValueError(f"unknown parameter {unknown[0]}; known: {', '.join(_KEYS)}")
    kinds = [kind for kind in query.get("kind", "").split(",") if kind]
    if strange := [kind for kind in kinds if kind not in _KINDS]:
        raise ValueError(f"no kind of event: {strange[0]}; there are: {', '.join(EventKind)}")
    since_s = _number(query, "since", 0.0)
    wanted = EventFilter(
        after=int(_number(query, "after", 0)),
        since_timestamp_s=since_s if since_s >= 0 else now_s + since_s,
        service=query.get("service", ""),
        backend=query.get("backend", ""),
        kinds=frozenset(map(EventKind, kinds)),
        newest=int(min(max(_number(query, "newest", 100), 0), NEWEST_MAX)),
    )
    return wanted, min(max(_number(query, "wait", 0.0), 0.0), WAIT_MAX_S)


def _number(query: Mapping[str, str], key: str, default: float) -> float:
    try:
        number = float(query.get(key, default))
    except ValueError:
        number = float("nan")
    if not abs(number) < float(1 << 53):
        raise ValueError(f"{key} must be a number, not {query[key]!r}")
    return number


async def answer(request: web.Request, source: EventsSource) -> web.Response:
    """Answer the route. Raises HTTPBadRequest with a sentence for a query that is wrong."""
    try:
        wanted, wait_s = parse_query(request.query, time.time())
    except ValueError as error:
        raise web.HTTPBadRequest(reason=str(error)) from error
    found = await source.events(wanted, wait_s)
    return web.json_response({"events": [to_document(event) for event in found]})
