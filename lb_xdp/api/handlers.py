"""What each route does: from a checked request to the controller, and to the answer's value.

Owns names that are not there, and overrides made from a request. It refuses to know HTTP.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection

from lb_xdp import __version__
from lb_xdp.api.answers import (
    Detached,
    Done,
    OverrideList,
    Ping,
    Pools,
    PoolStatus,
    Services,
    override_list,
    pool_statuses,
)
from lb_xdp.api.names import did_you_mean
from lb_xdp.api.route import Call
from lb_xdp.core.flow_list import FlowList, Wanted
from lb_xdp.core.override import Kind, Override, Subject
from lb_xdp.core.preview import Preview
from lb_xdp.core.snapshot import BackendStatus, ServiceStatus, Snapshot
from lb_xdp.core.wish import Outcome, ReloadWish
from lb_xdp.errors import RequestError, UnknownNameError

DEFAULT_FLOWS = 100


async def ping(_call: Call) -> Ping:
    """Answer without touching the gateway."""
    return Ping(os.getpid(), __version__)


async def status(call: Call) -> Snapshot:
    """Return everything."""
    return call.controller.snapshot()


async def services(call: Call) -> Services:
    """Return all services."""
    return Services(call.controller.snapshot().services)


async def service(call: Call) -> ServiceStatus:
    """Return one service."""
    return _service(call)


async def backend(call: Call) -> BackendStatus:
    """Return one backend."""
    members = {each.name: each for each in _service(call).backends}
    name = call.path["backend"]
    if name not in members:
        _missing("backend", name, members)
    return members[name]


async def pools(call: Call) -> Pools:
    """Return all pools in use."""
    return Pools(pool_statuses(call.controller.snapshot()))


async def pool(call: Call) -> PoolStatus:
    """Return one pool."""
    found = {each.name: each for each in pool_statuses(call.controller.snapshot())}
    name = call.path["pool"]
    if name not in found:
        _missing("pool", name, found)
    return found[name]


async def overrides(call: Call) -> OverrideList:
    """Return all overrides."""
    return override_list(call.controller.overrides(), call.controller.revision())


async def override(call: Call) -> OverrideList:
    """Return the overrides of one backend."""
    held = call.controller.overrides()
    names = (call.path["service"], call.path["backend"])
    found = [each for each in held if each.subject[:2] == names]
    if not found:
        _require_backend(call)
    return override_list(found, call.controller.revision())


async def set_override(call: Call) -> OverrideList:
    """Put what is asked in force; ``admin: ready`` takes that override away."""
    _require_backend(call)
    kinds = [kind for kind in Kind if kind.value in call.body]
    if not kinds:
        raise RequestError("says neither `admin` nor `weight`", place="body")
    made = [_override(call, kind) for kind in kinds]
    await call.controller.set_overrides(made, call.match)
    return override_list(made, call.controller.revision())


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
    """Take the overrides of one backend away, or those of one kind."""
    asked = call.query.get("kind")
    subjects = [_subject(call, kind) for kind in Kind if asked in {None, kind}]
    held = {each.subject for each in call.controller.overrides()}
    if not held.intersection(subjects):
        _require_backend(call)  # nothing to clear is fine, a wrong name is not
    gone = await call.controller.clear_overrides(subjects, call.author, call.match)
    return override_list(gone, call.controller.revision())


async def clear_overrides(call: Call) -> OverrideList:
    """Take all overrides away."""
    subjects = [each.subject for each in call.controller.overrides()]
    gone = await call.controller.clear_overrides(subjects, call.author, call.match)
    return override_list(gone, call.controller.revision())


async def plan(call: Call) -> Preview:
    """Return what a configuration would change."""
    source = call.body.get("source", "the request")
    return await call.controller.plan(call.body.get("text"), source)


async def reload(call: Call) -> Outcome:
    """Go to another configuration, or load the daemon's own file again."""
    body = call.body
    wish = ReloadWish(
        text=body.get("text"),
        source=body.get("source", "the request"),
        moved_share_max=body.get("max_moved"),
        confirm_s=body.get("confirm"),
        author=call.author,
        match=call.match,
    )
    return await call.controller.reload(wish)


async def confirm(call: Call) -> Done:
    """Keep what a reload did."""
    summary = await call.controller.confirm(call.author, call.match)
    return Done(summary, call.controller.revision())


async def roll_back(call: Call) -> Done:
    """Undo what a reload did."""
    summary = await call.controller.roll_back(call.author, call.match)
    return Done(summary, call.controller.revision())


async def flows(call: Call) -> FlowList:
    """Return recorded flows."""
    service_name, backend_name = call.query.get("service"), call.query.get("backend")
    names = call.controller.names()
    if service_name is not None and service_name not in names:
        _missing("service", service_name, names)
    chosen = names if service_name is None else {service_name: names[service_name]}
    members = {name for members in chosen.values() for name in members}
    if backend_name is not None and backend_name not in members:
        _missing("backend", backend_name, members)
    limit = call.query.get("limit", DEFAULT_FLOWS)
    return await call.controller.flows(
        Wanted(service_name, backend_name, call.query.get("client"), limit)
    )


async def detach(call: Call) -> Detached:
    """Stop forwarding."""
    await call.controller.detach(call.match)
    return Detached(detached=True)


def _service(call: Call) -> ServiceStatus:
    found = {each.name: each for each in call.controller.snapshot().services}
    name = call.path["service"]
    if name not in found:
        _missing("service", name, found)
    return found[name]


def _subject(call: Call, kind: Kind) -> Subject:
    return Subject(call.path["service"], call.path["backend"], kind)


def _require_backend(call: Call) -> None:
    names = call.controller.names()
    wanted = call.path["service"], call.path["backend"]
    if wanted[0] not in names:
        _missing("service", wanted[0], names)
    if wanted[1] not in names[wanted[0]]:
        _missing("backend", wanted[1], names[wanted[0]])


def _missing(what: str, name: str, known: Collection[str]) -> None:
    raise UnknownNameError(did_you_mean(what, name, known))
