"""What a desired state is called, and who may still change it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lb_xdp.core.override import Overrides
from lb_xdp.core.wish import digest, moved_by_name, refuse_stale, revision
from lb_xdp.errors import StaleError
from tests.support.writings import config
from tests.unit.test_store import DRAIN


def test_the_same_wishes_have_the_same_name() -> None:
    """Wherever the file stood; another weight is another name."""
    one = config(100, 200)
    assert digest(one) == digest(replace(one, source="elsewhere.yaml"))
    assert digest(one) != digest(config(100, 201))


def test_overrides_are_part_of_what_is_desired() -> None:
    """Setting one makes another revision, clearing it makes the former one again."""
    overrides = Overrides().having(DRAIN)
    plain = revision("0123", Overrides())
    assert revision("0123", overrides) != plain
    assert revision("0123", overrides.lacking(DRAIN.subject)) == plain


def test_what_was_seen_must_be_what_is_there() -> None:
    """Several revisions may do, none does if the caller saw no state at all."""
    refuse_stale(None, "b")
    refuse_stale(frozenset({"a", "b"}), "b")
    for match in (frozenset({"a"}), frozenset[str]()):
        with pytest.raises(StaleError, match="look again"):
            refuse_stale(match, "b")


def test_moved_slots_are_told_by_the_services_names() -> None:
    """Only of services of which some have moved."""
    of = config(100, 200)
    (service,) = of.services
    (found,) = moved_by_name(of, {service.key: 100}, 1000)
    assert (found.name, found.moved_slots, found.share) == ("web", 100, 0.1)
    assert moved_by_name(of, {service.key: 0}, 1000) == ()
