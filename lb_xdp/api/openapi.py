"""The OpenAPI 3.1 description of the API, made from the table of routes."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from lb_xdp import __version__
from lb_xdp.api.answers import Failure
from lb_xdp.api.fields import object_schema
from lb_xdp.api.route import Route
from lb_xdp.api.schema import components, reference

_FAILURES = {
    HTTPStatus.BAD_REQUEST: "The request cannot be read.",
    HTTPStatus.UNAUTHORIZED: "Over TCP only: no token, or one that is not known.",
    HTTPStatus.NOT_FOUND: "There is no such path, or nothing of that name.",
    HTTPStatus.UNPROCESSABLE_ENTITY: "A value is refused; `place` or `errors` say where.",
    HTTPStatus.INTERNAL_SERVER_ERROR: "The kernel refused, or a fault of the daemon.",
}
_FAILURES_OF_WRITERS = {
    HTTPStatus.FORBIDDEN: "The token may read only.",
}
_FAILURES_OF_BODIES = {
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "The body is too large.",
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: "The body is no JSON by its own headers.",
}
_FAILURES_OF_CHANGES = {
    HTTPStatus.CONFLICT: "As things stand it cannot be done; nothing was changed.",
    HTTPStatus.PRECONDITION_FAILED: "The desired state is another one than If-Match says.",
    HTTPStatus.SERVICE_UNAVAILABLE: "The daemon is told to stop; nothing was changed.",
    HTTPStatus.INSUFFICIENT_STORAGE: "It could not be kept on disk; nothing was changed.",
}
_TAG = {"ETag": {"description": "revision of the desired state", "schema": {"type": "string"}}}
_IF_MATCH = {
    "name": "If-Match",
    "in": "header",
    "required": False,
    "description": "the ETag that was seen; another desired state refuses the change with 412",
    "schema": {"type": "string"},
}


def describe(routes: Sequence[Route]) -> dict[str, Any]:
    """Return the description as JSON values."""
    paths: dict[str, Any] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    kinds = [route.answer for route in routes if route.answer is not None]
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "lb-xdp",
            "version": __version__,
            "description": (
                "The gateway's control API. On the unix socket whoever may open it may do "
                "everything; over TCP a bearer token says who asks."
            ),
        },
        "security": [{}, {"token": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": components([*kinds, Failure]),
        },
    }


def _operation(route: Route) -> dict[str, Any]:
    answer = reference(route.answer) if route.answer else {"type": "object"}
    failures = {
        **_FAILURES,
        **({} if route.reads_only else _FAILURES_OF_WRITERS),
        **({} if route.body is None else _FAILURES_OF_BODIES),
        **(_FAILURES_OF_CHANGES if route.changes else {}),
    }
    operation: dict[str, Any] = {
        "operationId": route.name,
        "summary": route.summary,
        "parameters": _parameters(route),
        "responses": {
            "200": {"description": "Done.", "headers": _TAG, "content": _json(answer)},
            **{
                str(status.value): {"description": words, "content": _json(reference(Failure))}
                for status, words in sorted(failures.items())
            },
        },
    }
    if route.body is not None:
        operation["requestBody"] = {"content": _json(object_schema(route.body)), "required": False}
    return operation


def _parameters(route: Route) -> list[dict[str, Any]]:
    inside = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in route.parameters
    ]
    asked = [
        {
            "name": name,
            "in": "query",
            "required": False,
            "description": field.meaning,
            "schema": dict(field.schema),
        }
        for name, field in route.query.items()
    ]
    return [*inside, *asked, *([_IF_MATCH] if route.changes else [])]


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}
