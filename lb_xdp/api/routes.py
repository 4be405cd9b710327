"""The table of routes: all that the API can do, in one place.

The server answers these, the OpenAPI description tells them, and a test compares the two.
"""

from __future__ import annotations

from lb_xdp.api import change, fields, handlers
from lb_xdp.api.answers import (
    Detached,
    Done,
    EventList,
    OverrideList,
    Ping,
    Pools,
    PoolStatus,
    ServiceNames,
    Services,
)
from lb_xdp.api.openapi import describe
from lb_xdp.api.route import Call, Route
from lb_xdp.core.event import EventKind
from lb_xdp.core.flow_list import FlowList
from lb_xdp.core.override import MAX_WEIGHT, Kind
from lb_xdp.core.preview import Preview
from lb_xdp.core.snapshot import Admin, BackendStatus, ServiceStatus, Snapshot
from lb_xdp.core.wish import Outcome

LONGEST_NAME = 300
LARGEST_FILE = 4 * 1024 * 1024
FLOWS_MAX = 10_000
EVENTS_MAX = 10_000
WAIT_MAX_S = 60.0
LAST_NUMBER = 2**53  # JSON readers that know only doubles are exact up to here
TEN_YEARS_S = 10 * 365 * 86_400.0

_OVERRIDE = {
    "admin": fields.choice(
        "drain: no new flows; maint: no probes either; down: cut at once; ready: none of these",
        [admin.value for admin in Admin],
    ),
    "weight": fields.integer("instead of the file's; 0: no new flows", 0, MAX_WEIGHT),
    "reason": fields.line("why, for whoever looks at it later", 200),
    "expires": fields.duration("the override ends by itself after this", 0.001, TEN_YEARS_S),
}
_FILE = {
    "text": fields.text(
        "a configuration, as YAML; without it the daemon's own file is read again", LARGEST_FILE
    ),
    "source": fields.line("what the text is called in messages", 200),
}
_RELOAD = {
    **_FILE,
    "max_moved": fields.share("refuse if more of some service's slots would move"),
    "confirm": fields.duration("undo it after this time unless it is confirmed", 1.0, 86_400.0),
}
_EVENTS = {
    "after": fields.integer("only later ones than this number", 0, LAST_NUMBER),
    "since": fields.number(
        "only from this time on, in Unix seconds; negative: so many seconds ago",
        *(-TEN_YEARS_S, LAST_NUMBER),
    ),
    "service": fields.text("only of this service", LONGEST_NAME),
    "backend": fields.text("only of backends of this name", LONGEST_NAME),
    "kind": fields.choices("only of these kinds", [k.value for k in EventKind], EventKind),
    "newest": fields.integer("at most so many, the last ones", 0, EVENTS_MAX),
    "wait": fields.number("seconds to wait for an event if there is none", 0.0, WAIT_MAX_S),
}
_FLOWS = {
    "service": fields.text("only flows of this service", LONGEST_NAME),
    "backend": fields.text("only flows of backends of this name", LONGEST_NAME),
    "client": fields.network("only flows from this address or prefix"),
    "limit": fields.integer("at most so many flows; the counts are of all", 0, FLOWS_MAX),
}
_KIND = {"kind": fields.choice("only of this kind", [k.value for k in Kind], Kind)}


async def _openapi(_call: Call) -> object:
    """Answer with the description of these routes."""
    return describe(ROUTES)


_BACKEND = "/v1/services/{service}/backends/{backend}"
_OVERRIDES = "/v1/overrides/{service}/{backend}"

ROUTES: tuple[Route, ...] = (
    Route("GET", "/v1/ping", "Who answers.", handlers.ping, Ping),
    Route("GET", "/v1/openapi.json", "This description.", _openapi, None),
    Route("GET", "/v1/status", "The whole gateway.", handlers.status, Snapshot),
    Route("GET", "/v1/names", "The names of all backends and pools.", handlers.names, ServiceNames),
    Route("GET", "/v1/services", "All services with their backends.", handlers.services, Services),
    Route("GET", "/v1/services/{service}", "One service.", handlers.service, ServiceStatus),
    Route("GET", _BACKEND, "One backend of a service.", handlers.backend, BackendStatus),
    Route("GET", "/v1/pools", "All pools in use.", handlers.pools, Pools),
    Route("GET", "/v1/pools/{pool}", "One pool.", handlers.pool, PoolStatus),
    Route("GET", "/v1/overrides", "All overrides.", handlers.overrides, OverrideList),
    Route("GET", _OVERRIDES, "The overrides of a backend.", handlers.override, OverrideList),
    Route(
        *("PUT", _OVERRIDES, "Set the admin state or weight of a backend, or both."),
        *(handlers.set_override, OverrideList),
        body=_OVERRIDE,
        changes=True,
    ),
    Route(
        *("DELETE", _OVERRIDES, "Clear the overrides of a backend, and return them."),
        *(handlers.clear_override, OverrideList),
        query=_KIND,
        changes=True,
    ),
    Route(
        *("DELETE", "/v1/overrides", "Clear all overrides, and return them."),
        *(handlers.clear_overrides, OverrideList),
        changes=True,
    ),
    Route(
        *("POST", "/v1/plan", "What a configuration would change. Nothing is changed."),
        *(change.plan, Preview),
        body=_FILE,
    ),
    Route(
        *("POST", "/v1/reload", "Go to another configuration, all of it or nothing."),
        *(change.reload, Outcome),
        body=_RELOAD,
        changes=True,
    ),
    Route(
        *("POST", "/v1/confirm", "Keep what a reload with `confirm` did."),
        *(change.confirm, Done),
        changes=True,
    ),
    Route(
        *("POST", "/v1/rollback", "Undo what a reload with `confirm` did."),
        *(change.roll_back, Done),
        changes=True,
    ),
    Route("GET", "/v1/flows", "Recorded flows.", change.flows, FlowList, query=_FLOWS),
    Route("GET", "/v1/events", "What happened.", handlers.events, EventList, query=_EVENTS),
    Route(
        *("POST", "/v1/detach", "Remove program and pins: forwarding stops, the daemon ends."),
        *(handlers.detach, Detached),
        changes=True,
    ),
)
