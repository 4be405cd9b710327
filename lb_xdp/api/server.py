"""The API's server: routes, status codes and the unix socket.

This module owns HTTP and the socket file. It refuses to know the gateway: everything it tells and
does goes through ``Controller``, which the reconciler implements. Who may use the API is decided by
the socket's mode and owner alone.

    GET  /v1/ping     the daemon's pid and version
    GET  /v1/status   the Snapshot
    GET  /v1/events   what happened (``events`` says what may be asked)
    POST /v1/reload   load the configuration file again; 422 with its errors when it is refused
    POST /v1/detach   remove program and pins; the daemon ends after the answer
    /v1/overrides     what is asked of backends at run time: see ``overrides``
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Protocol

from aiohttp import web

from lb_xdp import __version__
from lb_xdp.api import events, overrides
from lb_xdp.api.events import EventsSource
from lb_xdp.api.wire import encode_snapshot, error_to_json
from lb_xdp.core.snapshot import Snapshot
from lb_xdp.errors import (
    AlreadyRunningError,
    HostError,
    InvalidConfigError,
    LbError,
    RequestError,
    StoreError,
    UnfitOverrideError,
    UnknownNameError,
)

SOCKET_MODE = 0o660
BACKLOG = 128
PATH_BYTES_MAX = 107  # sun_path of unix(7) is 108 bytes with its NUL
SHUTDOWN_S = 2.0

STATUS_OF = {
    InvalidConfigError: HTTPStatus.UNPROCESSABLE_ENTITY,
    RequestError: HTTPStatus.BAD_REQUEST,
    UnknownNameError: HTTPStatus.NOT_FOUND,
    UnfitOverrideError: HTTPStatus.UNPROCESSABLE_ENTITY,
    StoreError: HTTPStatus.INSUFFICIENT_STORAGE,
}
"""What an error is answered with; 500 where it is none of these."""


class Controller(EventsSource, overrides.OverridesKeeper, Protocol):
    """What the API needs of the gateway. All of it is called in the event loop's thread."""

    def snapshot(self) -> Snapshot:
        """Return the gateway as it is now; may read maps, must be quick. Raises LbError."""
        ...

    async def reload(self) -> str:
        """Load the file again and return in a sentence what changed. Raises LbError."""
        ...

    async def detach(self) -> None:
        """Remove program and pins. The daemon may end only after this has returned."""
        ...


CONTROLLER: web.AppKey[Controller] = web.AppKey("controller")


def make_app(controller: Controller) -> web.Application:
    """Return the routes over ``controller``."""
    app = web.Application(middlewares=[_errors_as_json])
    app[CONTROLLER] = controller
    app.router.add_get("/v1/ping", _ping)
    app.router.add_get("/v1/status", _status)
    app.router.add_get("/v1/events", _events)
    app.router.add_post("/v1/reload", _reload)
    app.router.add_post("/v1/detach", _detach)
    app.add_routes(overrides.routes(controller))
    return app


@asynccontextmanager
async def serve(path: Path, controller: Controller) -> AsyncIterator[None]:
    """Answer on the unix socket ``path`` while the context is open, then remove it.

    The directory must exist. A socket that a dead daemon left is replaced. Raises
    AlreadyRunningError when a live one answers there, HostError when the socket cannot be made.
    """
    listener = open_socket(path)
    runner = web.AppRunner(make_app(controller), access_log=None, shutdown_timeout=SHUTDOWN_S)
    try:
        await runner.setup()
        await web.SockSite(runner, listener).start()
        yield
    finally:
        remove_socket(path)
        await runner.cleanup()
        listener.close()


def open_socket(path: Path) -> socket.socket:
    """Return a socket bound to ``path`` with mode 0660, not listening yet. Errors as in serve."""
    if len(os.fsencode(path)) > PATH_BYTES_MAX:
        raise HostError(
            f"the API socket path {path} is longer than {PATH_BYTES_MAX} bytes: "
            "choose a shorter gateway.name or set gateway.api.socket"
        )
    _remove_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.setblocking(False)  # noqa: FBT003 - the socket module takes no keyword here
    try:
        listener.bind(os.fspath(path))
        # Before listen(): until then nobody can connect, whatever the umask has left open.
        path.chmod(SOCKET_MODE)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise HostError(
            f"cannot create the API socket {path}: {error.strerror}: "
            "see that its directory exists and is writable, or set gateway.api.socket"
        ) from error
    return listener


def remove_socket(path: Path) -> None:
    """Remove the name first: a command then sees no daemon rather than one that does not answer."""
    path.unlink(missing_ok=True)


def _remove_stale(path: Path) -> None:
    """Remove the socket file of a dead daemon. A live daemon, and a file of another kind, stay."""
    try:
        mode = path.lstat().st_mode
    except OSError:
        return  # nothing there, or the directory is missing: bind() says which
    if not stat.S_ISSOCK(mode):
        raise HostError(
            f"{path} exists and is not a socket: remove it, or set gateway.api.socket elsewhere"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        # A daemon too busy to accept (a full backlog, a timeout) is alive as well.
        if probe.connect_ex(os.fspath(path)) != errno.ECONNREFUSED:
            raise AlreadyRunningError(
                f"another lb-xdp daemon answers on {path}: stop that one first, or give this "
                "gateway another gateway.name"
            )
    remove_socket(path)


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@web.middleware
async def _errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn our errors, and aiohttp's 404 and 405, into the one JSON form of an error."""
    try:
        return await handler(request)
    except LbError as error:
        status = STATUS_OF.get(type(error), HTTPStatus.INTERNAL_SERVER_ERROR)
        return web.json_response(error_to_json(error), status=status)
    except web.HTTPException as error:
        message = f"{request.method} {request.path}: {error.reason.lower()}"
        document = {"error": message, "kind": type(error).__name__, "exit_code": 1}
        allowed = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else None
        return web.json_response(document, status=error.status, headers=allowed)


async def _ping(_request: web.Request) -> web.Response:
    """Answer without touching the gateway: who is here."""
    return web.json_response({"pid": os.getpid(), "version": __version__})


async def _status(request: web.Request) -> web.Response:
    """Take the snapshot here, encode it in a thread: probes must not wait for 10,000 backends."""
    snapshot = request.app[CONTROLLER].snapshot()
    body = await asyncio.to_thread(encode_snapshot, snapshot)
    return web.Response(body=body, content_type="application/json")


async def _events(request: web.Request) -> web.Response:
    """Tell what happened."""
    return await events.answer(request, request.app[CONTROLLER])


async def _reload(request: web.Request) -> web.Response:
    """Reload the file that the daemon runs on."""
    summary = await request.app[CONTROLLER].reload()
    return web.json_response({"summary": summary})


async def _detach(request: web.Request) -> web.Response:
    """Stop forwarding. The connection closes with the answer: nothing follows it."""
    await request.app[CONTROLLER].detach()
    response = web.json_response({"detached": True})
    response.force_close()
    return response
