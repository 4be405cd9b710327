"""HTTP for monitoring: /metrics, /healthz, /readyz and an index.

This module owns the routes and the listening address. It refuses to own what is exposed
(``exposition.py``) and to change anything: every route only reads.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from html import escape
from http import HTTPStatus

from aiohttp import web

from lb_xdp.core.model import Listen
from lb_xdp.core.snapshot import Snapshot, State
from lb_xdp.errors import AddressInUseError, HostError, LbError
from lb_xdp.metrics.exposition import Exposition

SHUTDOWN_S = 1.0
NAMES_SHOWN = 5

Source = Callable[[], Awaitable[Snapshot]]
"""Takes a snapshot; asked once for each request."""

SOURCE: web.AppKey[Source] = web.AppKey("source")
EXPOSITION: web.AppKey[Exposition] = web.AppKey("exposition", Exposition)


def make_app(exposition: Exposition, source: Source) -> web.Application:
    """Return the routes over ``exposition`` and what ``source`` tells."""
    app = web.Application(middlewares=[_errors_as_text])
    app[EXPOSITION], app[SOURCE] = exposition, source
    app.router.add_get("/", _index)
    app.router.add_get("/metrics", _metrics)
    app.router.add_get("/healthz", _healthz)
    app.router.add_get("/readyz", _readyz)
    return app


@asynccontextmanager
async def serve(listen: Listen, exposition: Exposition, source: Source) -> AsyncIterator[Listen]:
    """Answer on ``listen`` while the context is open; give the address bound (port 0 picks one).

    Raises AddressInUseError when the address is taken, HostError when it cannot be bound at all.
    """
    runner = web.AppRunner(
        make_app(exposition, source), access_log=None, shutdown_timeout=SHUTDOWN_S
    )
    try:
        await runner.setup()
        try:
            await web.TCPSite(runner, listen.host, listen.port).start()
        except OSError as error:
            raise _cannot_listen(listen, error) from error
        host, port, *_ = runner.addresses[0]
        yield Listen(host, port)
    finally:
        await runner.cleanup()


def _cannot_listen(listen: Listen, error: OSError) -> LbError:
    """Return the error that names the key, the address and the remedy."""
    place = f"gateway.metrics.listen: cannot listen on {listen}"
    if error.errno == errno.EADDRINUSE:
        return AddressInUseError(
            f"{place}: the address is in use: choose another port in gateway.metrics.listen, "
            f"or see who holds it with: ss -ltnp 'sport = :{listen.port}'"
        )
    return HostError(
        f"{place}: {error.strerror}: set gateway.metrics.listen to an address of this host, "
        "127.0.0.1 for example"
    )


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@web.middleware
async def _errors_as_text(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer 503 with the reason when the gateway cannot say how it is."""
    try:
        return await handler(request)
    except LbError as error:
        return _text(HTTPStatus.SERVICE_UNAVAILABLE, str(error))


async def _metrics(request: web.Request) -> web.Response:
    """Take the snapshot here and encode it in a thread: probes must not wait for a large scrape."""
    exposition, snapshot = request.app[EXPOSITION], await request.app[SOURCE]()
    accept = ",".join(request.headers.getall("Accept", []))
    body, content_type = await asyncio.to_thread(exposition.render, accept, snapshot)
    return web.Response(body=body, headers={"Content-Type": content_type})


async def _healthz(request: web.Request) -> web.Response:
    """Say whether this process serves and the program is attached."""
    snapshot = await request.app[SOURCE]()
    if snapshot.datapath.programs:
        return _text(HTTPStatus.OK, "ok")
    return _text(HTTPStatus.SERVICE_UNAVAILABLE, "no XDP program is attached to any interface")


async def _readyz(request: web.Request) -> web.Response:
    """Say whether the gateway should be sent traffic."""
    snapshot = await request.app[SOURCE]()
    if snapshot.ready:
        return _text(HTTPStatus.OK, "ready")
    return _text(HTTPStatus.SERVICE_UNAVAILABLE, "\n".join(["not ready", *_why_not(snapshot)]))


async def _index(request: web.Request) -> web.Response:
    """Name the gateway and link the other routes."""
    name = escape((await request.app[SOURCE]()).gateway)
    links = "".join(
        f'<li><a href="{path}">{path}</a></li>' for path in ("/metrics", "/healthz", "/readyz")
    )
    page = f"<!doctype html><title>lb-xdp {name}</title><h1>lb-xdp {name}</h1><ul>{links}</ul>"
    return web.Response(text=page, content_type="text/html")


def _why_not(snapshot: Snapshot) -> list[str]:
    """Return sentences that say what keeps the gateway from being ready."""
    reasons = list(snapshot.notices)
    if not snapshot.datapath.programs:
        reasons.append("no XDP program is attached to any interface")
    waiting = [
        f"{service.name}/{backend.name}"
        for service in snapshot.services
        for backend in service.backends
        if backend.state is State.UNKNOWN
    ]
    if waiting:
        more = f" and {len(waiting) - NAMES_SHOWN} more" if len(waiting) > NAMES_SHOWN else ""
        reasons.append(f"not probed yet: {', '.join(waiting[:NAMES_SHOWN])}{more}")
    return reasons


def _text(status: HTTPStatus, text: str) -> web.Response:
    """Return a plain answer of one or more lines."""
    return web.Response(status=status, text=f"{text}\n")
