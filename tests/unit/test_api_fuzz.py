"""The API under requests that nobody would write, made from its own description."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from tests.support.api_fuzz import Request, requests
from tests.support.controller import FakeController
from tests.support.described import Answer, check, send, served

NAMES = {"service": ["web"], "pool": ["web"], "backend": ["web1", "web2", "10.0.0.13:8080"]}


def state(controller: FakeController) -> tuple[object, ...]:
    """Return all that a refused call must leave alone."""
    return controller.revision(), tuple(controller.overrides()), controller.waits


@pytest.fixture(scope="module")
def gateway(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Path, FakeController]]:
    """Serve one controller for all requests of this module."""
    controller = FakeController()
    path = tmp_path_factory.mktemp("fuzz") / "api.sock"
    with served(path, controller):
        yield path, controller


@settings(
    max_examples=600,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(request=requests(NAMES))
def test_no_request_is_a_fault_and_refused_ones_change_nothing(
    gateway: tuple[Path, FakeController],
    request: Request,
) -> None:
    """Whatever is asked: never a 5xx, always an answer as described, no state without a 200."""
    socket, controller = gateway
    method, path, target, body, headers = request
    before = state(controller)
    answer: Answer = send(socket, method, target, body, headers)
    assert answer.status < 500, answer
    if method != "HEAD" and answer.status != 413:
        check(method, path, answer)
    if answer.status != 200 or method == "GET":
        assert state(controller) == before
