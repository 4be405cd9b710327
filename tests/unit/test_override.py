"""Overrides as values: who may be asked for what, and when it ends."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from lb_xdp.core.model import Backend, BackendName
from lb_xdp.core.override import Kind, Override, Overrides, Subject, refuse_unfit
from lb_xdp.core.snapshot import Admin
from lb_xdp.errors import LbError, UnfitOverrideError, UnknownNameError
from tests.support.one_service import config_of

WEB1 = Backend(BackendName("web1"), IPv4Address("10.0.0.11"), 80)
WEB2 = replace(WEB1, name=BackendName("web2"), address=IPv4Address("10.0.0.12"))
SORRY = replace(WEB1, name=BackendName("sorry"), address=IPv4Address("10.0.0.13"), fallback=True)
GONE = replace(WEB1, name=BackendName("gone"), address=IPv4Address("10.0.0.14"), left="web")
CONFIG = config_of(WEB1, WEB2, SORRY, GONE)


def asked(
    backend: str, value: str, *, service: str = "web", ends_s: float | None = None
) -> Override:
    kind = Kind.WEIGHT if value.lstrip("-").isdigit() else Kind.ADMIN
    return Override(Subject(service, backend, kind), value, "ann", "", 0, ends_s)


@pytest.mark.parametrize("value", ["drain", "maint", "down", "ready", "0", "65535"])
def test_what_can_be_is_taken(value: str) -> None:
    """Every admin state, and every weight that a file may have."""
    refuse_unfit([asked("web1", value)], CONFIG)


@pytest.mark.parametrize(
    ("override", "kind", "expected"),
    [
        (asked("b", "drain"), UnknownNameError, "no backend b; backends: web1, web2"),
        (asked("web9", "drain"), UnknownNameError, "backends: web1, web2, sorry, gone"),
        (
            asked("web1", "drain", service="wbe"),
            UnknownNameError,
            r"no service wbe; did you mean web\? services: web",
        ),
        (asked("web1", "65536"), UnfitOverrideError, "an integer from 0 to 65535"),
        (asked("web1", "-1"), UnfitOverrideError, "an integer from 0 to 65535"),
        (asked("web1", "9" * 5000), UnfitOverrideError, "an integer from 0 to 65535"),
        (asked("web1", "off"), UnfitOverrideError, "ready, drain, maint, down"),
        (asked("sorry", "drain"), UnfitOverrideError, "change it in the file"),
        (asked("gone", "drain"), UnfitOverrideError, "it can only be cut: down"),
        (asked("gone", "5"), UnfitOverrideError, "it can only be cut: down"),
    ],
)
def test_what_cannot_be_is_refused(override: Override, kind: type[LbError], expected: str) -> None:
    """With a message that says what there is, or what is allowed."""
    with pytest.raises(kind, match=expected):
        refuse_unfit([asked("web1", "drain"), override], CONFIG)


def test_digits_of_other_scripts_are_no_weight() -> None:
    """Though Python would count with them."""
    subject = Subject("web", "web1", Kind.WEIGHT)
    with pytest.raises(UnfitOverrideError, match="no weight"):
        refuse_unfit([Override(subject, "\u0661", "ann", "", 0)], CONFIG)


def test_a_removed_backend_can_be_cut() -> None:
    """Whoever wants its flows gone now need not wait."""
    refuse_unfit([asked("gone", "down"), asked("gone", "ready")], CONFIG)


def test_one_replaces_another_and_ready_takes_away() -> None:
    """There is one override about each thing; ready is what a backend is without any."""
    held = Overrides().having(asked("web1", "drain"), asked("web1", "50"), asked("web2", "down"))
    assert len(held) == 3
    held = held.having(asked("web1", "maint"))
    assert (held.admin("web", "web1"), held.weight("web", "web1")) == (Admin.MAINT, 50)
    held = held.having(asked("web1", "ready"))
    assert (held.admin("web", "web1"), held.weight("web", "web1")) == (Admin.READY, 50)
    held = held.lacking(Subject("web", "web1", Kind.WEIGHT), Subject("web", "web9", Kind.ADMIN))
    assert [str(override.subject) for override in held] == ["web/web2 admin"]


def test_they_end_when_they_said_they_would() -> None:
    """Not before; those without an end never do."""
    held = Overrides().having(
        asked("web1", "drain"), asked("web1", "5", ends_s=8), asked("web2", "down", ends_s=5)
    )
    assert held.next_expiry_timestamp_s() == 5
    assert held.expired(4.9) == ()
    assert [o.value for o in held.expired(5)] == ["down"]
    assert Overrides().having(asked("web1", "drain")).next_expiry_timestamp_s() is None


def test_an_override_is_said_in_words() -> None:
    """What, by whom and why."""
    override = replace(asked("web1", "drain"), reason="new disks")
    assert str(override) == "drain by ann: new disks"
    held = Overrides().having(asked("web1", "50"), override)
    assert [str(o) for o in held.about("web", "web1")] == [str(override), "weight 50 by ann"]
    assert held.about("web", "web2") == ()
