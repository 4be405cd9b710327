"""The API's server: HTTP over the table of routes, on the unix socket and perhaps over TCP.

This module owns HTTP: status codes, headers, the JSON form of every error. It refuses to know the
gateway: everything it tells and does goes through ``Controller``. What there is to ask is in
``routes``, who may ask in ``callers``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from http import HTTPStatus
from pathlib import Path

from aiohttp import web

from lb_xdp.api.callers import Callers, Tokens
from lb_xdp.api.controller import Controller
from lb_xdp.api.door import open_door
from lb_xdp.api.listener import open_socket, remove_socket, tls
from lb_xdp.api.route import Call, Route, read_body, read_match, read_query
from lb_xdp.api.routes import ROUTES
from lb_xdp.api.strangers import Strangers
from lb_xdp.api.wire import encode, error_to_json
from lb_xdp.core.model import ApiListener
from lb_xdp.errors import (
    DeniedError,
    HostError,
    InvalidConfigError,
    LbError,
    MediaError,
    NotNowError,
    RequestError,
    StaleError,
    StoppedError,
    StoreError,
    UnfitOverrideError,
    UnknownNameError,
)

SHUTDOWN_S = 2.0
BODY_BYTES_MAX = 16 * 1024 * 1024  # the largest file, with each octet of it escaped in JSON

CONTROLLER: web.AppKey[Controller] = web.AppKey("controller")
CALLERS: web.AppKey[Callers] = web.AppKey("callers")

# The first that fits; what is none of these is a 500.
_STATUS_OF: tuple[tuple[type[LbError], HTTPStatus], ...] = (
    (InvalidConfigError, HTTPStatus.UNPROCESSABLE_ENTITY),
    (UnfitOverrideError, HTTPStatus.UNPROCESSABLE_ENTITY),
    (UnknownNameError, HTTPStatus.NOT_FOUND),
    (StaleError, HTTPStatus.PRECONDITION_FAILED),
    (NotNowError, HTTPStatus.CONFLICT),
    (HostError, HTTPStatus.CONFLICT),
    (StoreError, HTTPStatus.INSUFFICIENT_STORAGE),
    (StoppedError, HTTPStatus.SERVICE_UNAVAILABLE),
)


def make_app(controller: Controller, callers: Callers | None = None) -> web.Application:
    """Return the routes over ``controller``."""
    app = web.Application(middlewares=[_errors_as_json], client_max_size=BODY_BYTES_MAX)
    app[CONTROLLER] = controller
    app[CALLERS] = callers or Callers()
    for route in ROUTES:
        answer = partial(_answer, route)
        if route.method == "GET":
            app.router.add_get(route.path, answer)  # HEAD as well
        else:
            app.router.add_route(route.method, route.path, answer)
    return app


@asynccontextmanager
async def serve(
    path: Path,
    controller: Controller,
    *,
    group: str | None = None,
    remote: ApiListener | None = None,
) -> AsyncIterator[None]:
    """Answer on the unix socket ``path``, and at ``remote``, while the context is open.

    The directory must exist. A socket that a dead daemon left is replaced. Raises
    AlreadyRunningError when a live one answers there, AddressInUseError, HostError when a socket
    cannot be made or a file of ``remote`` cannot be used.
    """
    async with AsyncExitStack() as stack:
        if remote is not None:
            await stack.enter_async_context(_over_tcp(remote, controller))
        listener = open_socket(path, group)
        stack.callback(listener.close)
        runner = _runner(make_app(controller))
        stack.push_async_callback(runner.cleanup)
        stack.callback(remove_socket, path)
        await runner.setup()
        await web.SockSite(runner, listener).start()
        yield


@asynccontextmanager
async def _over_tcp(remote: ApiListener, controller: Controller) -> AsyncIterator[None]:
    tokens = Tokens(Path(remote.tokens))
    tokens.load()
    strangers = Strangers(controller.count_stranger)
    runner = _runner(make_app(controller, Callers(tokens, strangers.note)))
    try:
        await runner.setup()
        servant = runner.server
        if servant is None:
            raise HostError("the API over TCP has no server")
        async with open_door(remote, tls(remote), servant):
            yield
    finally:
        await runner.cleanup()
        strangers.close()


def _runner(app: web.Application) -> web.AppRunner:
    return web.AppRunner(
        app,
        access_log=None,
        shutdown_timeout=SHUTDOWN_S,
        auto_decompress=False,  # nobody needs it, and a small body must not become a large one
    )


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@web.middleware
async def _errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn our errors, and aiohttp's own, into the one JSON form of an error."""
    try:
        return await handler(request)
    except LbError as error:
        status = _status_of(error)
        unknown = status is HTTPStatus.UNAUTHORIZED
        headers = {"WWW-Authenticate": 'Bearer realm="lb-xdp"'} if unknown else None
        return web.json_response(error_to_json(error), status=status, headers=headers)
    except web.HTTPException as error:
        allow = error.headers.get("Allow", "")
        hint = f"; allowed: {allow}" if allow else ""
        refusal = LbError(f"{request.method} {request.path}: {error.reason.lower()}{hint}")
        document = error_to_json(refusal) | {"kind": type(error).__name__}
        headers = {"Allow": allow} if allow else None
        return web.json_response(document, status=error.status, headers=headers)


def _status_of(error: LbError) -> HTTPStatus:
    if isinstance(error, DeniedError):
        return HTTPStatus.FORBIDDEN if error.known else HTTPStatus.UNAUTHORIZED
    if isinstance(error, MediaError):
        return HTTPStatus.UNSUPPORTED_MEDIA_TYPE
    if isinstance(error, RequestError):
        return HTTPStatus.BAD_REQUEST if error.malformed else HTTPStatus.UNPROCESSABLE_ENTITY
    found = (status for kind, status in _STATUS_OF if isinstance(error, kind))
    return next(found, HTTPStatus.INTERNAL_SERVER_ERROR)


async def _answer(route: Route, request: web.Request) -> web.Response:
    """Answer one request by its route.

    The tag of what was only looked at is taken before the look: a change in between then refuses
    the caller's next one, where a later tag would let it pass. Values are encoded in a thread:
    probes must not wait for 10,000 backends.
    """
    controller = request.app[CONTROLLER]
    caller = await request.app[CALLERS].of(request, named=route.changes)
    if not (route.reads_only or caller.may_write):
        raise DeniedError(f"{caller.name} may read only", known=True)
    query, asked = read_query(route, request), await read_body(route, request)
    match = read_match(request) if route.changes else None
    call = Call(controller, request.match_info, query, asked, caller.name, match)
    seen = controller.revision()
    answer = await route.handle(call)
    tag = controller.revision() if route.changes else seen
    body = await asyncio.to_thread(encode, answer)
    headers = {"ETag": f'"{tag}"', "Cache-Control": "no-store"}
    response = web.Response(body=body, content_type="application/json", headers=headers)
    if route.path == "/v1/detach":
        response.force_close()  # nothing follows: the daemon ends
    return response
