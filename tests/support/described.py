"""The API's OpenAPI description as a test uses it: a request, and whether its answer is described.

This module owns sending over the unix socket and the comparison with the description. It refuses to
know what a route is for.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

from lb_xdp.api.connection import UnixConnection
from lb_xdp.api.controller import Controller
from lb_xdp.api.openapi import describe
from lb_xdp.api.routes import ROUTES
from lb_xdp.api.server import serve

FAILURE = {"$ref": "#/components/schemas/Failure"}


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    document: Any


@cache
def description() -> dict[str, Any]:
    """Return the description as a client gets it."""
    document: dict[str, Any] = json.loads(json.dumps(describe(ROUTES)))
    return document


@cache
def _validator(reference: str) -> Any:
    schema = {**json.loads(reference), "components": description()["components"]}
    return Draft202012Validator(schema)


def fits(schema: Mapping[str, Any], document: object) -> list[str]:
    """Return how a document differs from a schema of the description; nothing where it does not."""
    validator = _validator(json.dumps(schema))
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(document)]


def check(method: str, path: str, answer: Answer) -> None:
    """Assert that an answer is one that the description tells of, for a path of it."""
    operation = description()["paths"][path].get(method.lower())
    if operation is None:  # a method that the path has not got
        assert answer.status in {400, 404, 405}, answer
        assert fits(FAILURE, answer.document) == []
        return
    assert str(answer.status) in operation["responses"], answer
    content = operation["responses"][str(answer.status)]["content"]
    assert fits(content["application/json"]["schema"], answer.document) == [], answer


def send(
    socket: Path,
    method: str,
    target: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """Send one request, and return its answer."""
    with closing(UnixConnection(socket, 10.0)) as connection:
        connection.request(method, target, body, dict(headers or {}))
        response = connection.getresponse()
        raw = response.read()
        told = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, told, json.loads(raw) if raw else None)


@contextmanager
def served(path: Path, controller: Controller) -> Iterator[Path]:
    """Serve a controller on a socket in a thread of its own, for tests that block."""
    ready, end = threading.Event(), threading.Event()

    async def work() -> None:
        async with serve(path, controller):
            ready.set()
            await asyncio.to_thread(end.wait)

    thread = threading.Thread(target=asyncio.run, args=(work(),))
    thread.start()
    try:
        assert ready.wait(10)
        yield path
    finally:
        end.set()
        thread.join()
