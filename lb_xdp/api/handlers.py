"""What each route does: from a checked request to the controller, and to the answer's value.

Owns names that are not there, and overrides made from a request; what changes by a file is in
``change``. It refuses to know HTTP.
"""

from __future__ import annotations

import os
import time

from lb_xdp import __version__
from lb_xdp.api.answers import (
    Detached,
    EventList,
    OverrideList,
    Ping,
    Pools,
    PoolStatus,
    ServiceNames,
    Services,
    override_list,
    pool_statuses,
)
from lb_xdp.api.route import Call
from lb_xdp.core.event import EventFilter
from lb_xdp.core.override import Kind, Override, Subject
from lb_xdp.core.snapshot import Admin, BackendStatus, ServiceStatus, Snapshot
from lb_xdp.core.unknown import require_backend, require_service, some_of, unknown
from lb_xdp.errors import RequestError, UnknownNameError

DEFAULT_EVENTS = 100


async def ping(_call: Call) -> Ping:
    """Answer without touching the gateway."""
    return Ping(os.getpid(), __version__)


async def status(call: Call) -> Snapshot:
    """Return everything."""
    return await call.controller.snapshot()


async def names(call: Call) -> ServiceNames:
    """Return what services, backends and pools are called."""
    named = {name: tuple(each) for name, each in call.controller.names().items()}
    return ServiceNames(named, tuple(call.controller.pool_names()))


async def services(call: Call) -> Services:
    """Return all services."""
    return Services((await call.controller.snapshot()).services)


async def service(call: Call) -> ServiceStatus:
    """Return one service."""
    return await _service(call)


async def backend(call: Call) -> BackendStatus:
    """Return one backend."""
    members = {each.name: each for each in (await _service(call)).backends}
    name = call.path["backend"]
    require_backend(call.path["service"], name, members)
    return members[name]


async def pools(call: Call) -> Pools:
    """Return all pools in use."""
    return Pools(pool_statuses(await call.controller.snapshot()))


async def pool(call: Call) -> PoolStatus:
    """Return one pool."""
    found = {each.name: each for each in pool_statuses(await call.controller.snapshot())}
    name = call.path["pool"]
    if name not in found:
        raise unknown("there is no pool", name, "pools", found)
    return found[name]


async def events(call: Call) -> EventList:
    """Return what happened; with ``wait``, as soon as there is something to return."""
    query = call.query
    since_s = query.get("since", 0.0)
    wanted = EventFilter(
        after=query.get("after", 0),
        since_timestamp_s=since_s if since_s >= 0 else time.time() + since_s,
        service=query.get("service", ""),
        backend=query.get("backend", ""),
        kinds=query.get("kind", frozenset()),
        newest=query.get("newest", DEFAULT_EVENTS),
    )
    return EventList(tuple(await call.controller.events(wanted, query.get("wait", 0.0))))


async def overrides(call: Call) -> OverrideList:
    """Return all overrides."""
    return override_list(call.controller.overrides(), call.controller.revision())


async def override(call: Call) -> OverrideList:
    """Return the overrides of one backend."""
    names = call.controller.names()
    service_name, backend_name = call.path["service"], call.path["backend"]
    require_service(service_name, names)
    require_backend(service_name, backend_name, names[service_name])
    return _held(call)


async def set_override(call: Call) -> OverrideList:
    """Put what is asked in force, and return what then holds of the backend."""
    kinds = [kind for kind in Kind if kind.value in call.body]
    if not kinds:
        raise RequestError("nothing is asked for: give admin, weight or both", place="body")
    if call.body.get("expires") and kinds == [Kind.ADMIN] and call.body["admin"] == Admin.READY:
        message = "ready is what a backend is without an override, it never ends"
        raise RequestError(message, place="body.expires")
    made = [_override(call, kind) for kind in kinds]
    await call.controller.set_overrides(*made, match=call.match)
    return _held(call)


def _held(call: Call) -> OverrideList:
    held = call.controller.overrides().about(call.path["service"], call.path["backend"])
    return override_list(held, call.controller.revision())


def _override(call: Call, kind: Kind) -> Override:
    now_s = time.time()
    expires_s = call.body.get("expires")
    return Override(
        subject=_subject(call, kind),
        value=str(call.body[kind.value]),
        author=call.author,
        reason=call.body.get("reason", ""),
        at_timestamp_s=now_s,
        expires_timestamp_s=None if expires_s is None else now_s + expires_s,
    )


async def clear_override(call: Call) -> OverrideList:
    """Let the file hold again for one backend, and return what held of it."""
    asked = call.query.get("kind")
    cleared = await _clear(call, *(_subject(call, k) for k in Kind if asked in {None, k}))
    if not cleared.overrides:
        name = "/".join(call.path.values()) + (f" {asked}" if asked else "")
        there = some_of([str(each.subject) for each in call.controller.overrides()])
        raise UnknownNameError(f"there is no override {name}; overrides: {there}")
    return cleared


async def clear_overrides(call: Call) -> OverrideList:
    """Let the file hold again for all backends, and return what held."""
    return await _clear(call, *(each.subject for each in call.controller.overrides()))


async def _clear(call: Call, *subjects: Subject) -> OverrideList:
    gone = await call.controller.clear_overrides(*subjects, author=call.author, match=call.match)
    return override_list(gone, call.controller.revision())


async def detach(call: Call) -> Detached:
    """Stop forwarding."""
    await call.controller.detach(call.match)
    return Detached(detached=True)


async def _service(call: Call) -> ServiceStatus:
    found = {each.name: each for each in (await call.controller.snapshot()).services}
    name = call.path["service"]
    require_service(name, found)
    return found[name]


def _subject(call: Call, kind: Kind) -> Subject:
    return Subject(call.path["service"], call.path["backend"], kind)
