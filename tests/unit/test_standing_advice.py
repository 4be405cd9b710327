"""What backends get that ask for something themselves, through their agents."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest

from lb_xdp.core.health import Advice
from lb_xdp.core.model import (
    Backend,
    BackendName,
    CheckKind,
    HealthCheck,
    Mode,
    Pool,
    Protocol,
    Service,
    ServiceName,
)
from lb_xdp.core.override import Kind, Override, Overrides, Subject
from lb_xdp.core.snapshot import Admin, Health, State
from lb_xdp.core.standing import Memory, Standing, stand_service


def standing(
    advice: Advice, *overrides: Override, weight: int = 100, health: Health = Health.UP
) -> Standing:
    """Return what one backend gets whose agent says this; there is another one beside it."""
    one = Backend(BackendName("web1"), IPv4Address("10.0.0.1"), 80, weight)
    other = Backend(BackendName("web2"), IPv4Address("10.0.0.2"), 80)
    pool = Pool("web", (one, other), HealthCheck(CheckKind.AGENT))
    service = Service(
        ServiceName("web"), IPv4Address("203.0.113.10"), 80, Protocol.TCP, Mode.DSR, pool
    )
    found = stand_service(
        service,
        Overrides().having(*overrides),
        lambda _service, _backend: health,
        Memory(),
        1000.0,
        advice_of=lambda _service, backend: advice if backend is one else Advice(),
    )
    return found.backends[one.key]


def override(kind: Kind, value: str) -> Override:
    """Return what an operator asked of the backend."""
    return Override(Subject("web", "web1", kind), value, "ann", "", 0)


@pytest.mark.parametrize(
    ("share", "weight", "expected"),
    [
        (0.75, 100, 75),
        (0.0, 100, 0),
        (1.5, 100, 150),
        (0.01, 10, 1),
        (9.0, 65535, 65535),
        (5, 0, 0),
    ],
)
def test_a_share_is_one_of_the_weight(share: float, weight: int, expected: int) -> None:
    """Rounded, at least 1 unless the agent says 0%, and never beyond what a weight can be."""
    found = standing(Advice(share), weight=weight)
    assert (found.weight, found.configured_weight) == (expected, weight)
    assert found.drains is (expected == 0)


@pytest.mark.parametrize(
    ("admin", "state"),
    [(Admin.READY, State.UP), (Admin.DRAIN, State.DRAIN), (Admin.MAINT, State.MAINT)],
)
def test_an_agents_word_is_as_good_as_an_operators(admin: Admin, state: State) -> None:
    """Drain and maint take no new flows, and the flows that are there go on."""
    found = standing(Advice(None, admin))
    assert found.state(Health.UP, reachable=True) is state
    assert found.packets
    assert (found.weight == 0) is (admin is not Admin.READY)
    assert f"{admin} by its agent" in found.why


@pytest.mark.parametrize("asked", [admin for admin in Admin if admin is not Admin.READY])
def test_an_operators_word_goes_before_an_agents(asked: Admin) -> None:
    """Ready is no such word: it takes back what an operator said before, and the agent is heard."""
    found = standing(Advice(None, Admin.DRAIN), override(Kind.ADMIN, asked))
    assert found.admin is asked


def test_an_agents_share_is_of_an_operators_weight() -> None:
    """Both hold together, and the reason names both."""
    found = standing(Advice(0.5), override(Kind.WEIGHT, "40"))
    assert found.weight == 20
    assert "50% by its agent" in found.why


def test_no_advice_says_nothing() -> None:
    """An agent that has no wish leaves no words."""
    assert standing(Advice()).why == ""
