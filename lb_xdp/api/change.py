"""What the routes about files and flows do: plan, reload, confirm, roll back, list.

From a checked request to the controller, and to the answer's value. It refuses to know HTTP.
"""

from __future__ import annotations

from lb_xdp.api.answers import Done
from lb_xdp.api.route import Call
from lb_xdp.core.flow_list import FlowList, Wanted
from lb_xdp.core.preview import Preview
from lb_xdp.core.unknown import require_backend, require_service
from lb_xdp.core.wish import Outcome, ReloadWish

DEFAULT_FLOWS = 100


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
    wanted = Wanted(
        call.query.get("service"),
        call.query.get("backend"),
        call.query.get("client"),
        call.query.get("limit", DEFAULT_FLOWS),
    )
    _require_names(call, wanted)
    return await call.controller.flows(wanted)


def _require_names(call: Call, wanted: Wanted) -> None:
    names = call.controller.names()
    if wanted.service is not None:
        require_service(wanted.service, names)
        names = {wanted.service: names[wanted.service]}
    if wanted.backend is not None:
        whose = wanted.service or f"of {', '.join(names)}"
        require_backend(whose, wanted.backend, sorted({n for each in names.values() for n in each}))
