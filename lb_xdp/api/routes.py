"""The table of routes: all that the API can do, in one place.

The server answers these, the OpenAPI description tells them, and a test compares the two.
"""

from __future__ import annotations

from lb_xdp.api import fields, handlers
from lb_xdp.api.answers import Detached, Done, OverrideList, Ping, Pools, PoolStatus, Services
from lb_xdp.api.openapi import describe
from lb_xdp.api.route import Call, Route
from lb_xdp.core.flow_list import FlowList
from lb_xdp.core.override import Kind
from lb_xdp.core.preview import Preview
from lb_xdp.core.snapshot import Admin, BackendStatus, ServiceStatus, Snapshot
from lb_xdp.core.wish import Outcome

LONGEST_NAME = 63
LARGEST_FILE = 4 * 1024 * 1024
FLOWS_MAX = 10_000
YEAR_S = 365 * 86_400.0

_OVERRIDE = {
    "admin": fields.choice(
        "drain: no new flows; maint: no probes either; down: cut at once; ready: none of these",
        [admin.value for admin in Admin],
    ),
    "weight": fields.integer("instead of the file's; 0: no new flows", 0, 65_535),
    "reason": fields.line("why, for whoever looks at it later", 200),
    "expires": fields.duration("the override ends by itself after this", 1.0, YEAR_S),
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
        *(handlers.plan, Preview),
        body=_FILE,
    ),
    Route(
        *("POST", "/v1/reload", "Go to another configuration, all of it or nothing."),
        *(handlers.reload, Outcome),
        body=_RELOAD,
        changes=True,
    ),
    Route(
        *("POST", "/v1/confirm", "Keep what a reload with `confirm` did."),
        *(handlers.confirm, Done),
        changes=True,
    ),
    Route(
        *("POST", "/v1/rollback", "Undo what a reload with `confirm` did."),
        *(handlers.roll_back, Done),
        changes=True,
    ),
    Route("GET", "/v1/flows", "Recorded flows.", handlers.flows, FlowList, query=_FLOWS),
    Route(
        *("POST", "/v1/detach", "Remove program and pins: forwarding stops, the daemon ends."),
        *(handlers.detach, Detached),
        changes=True,
    ),
)
