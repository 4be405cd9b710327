"""Pins outlive a version of lb_xdp: whoever changes what they hold must change LB_LAYOUT too."""

from __future__ import annotations

from hashlib import blake2b

from lb_xdp.core.plan import INDICES
from lb_xdp.core.ring import RING_SLOTS
from lb_xdp.datapath.layout import layout
from lb_xdp.datapath.maps import (
    CLIENTS,
    FRAGMENTED,
    MAX_SNATS,
    NAT_FLOWS,
    UNPROVEN,
    TableShape,
    generation_specs,
    persistent_specs,
)

LAYOUTS = {1: "a48ba9e7f06d04c8", 2: "42ee6263e92735fc", 3: "3a28b3f4a7639ab6"}
"""What each layout number stands for: add a line, never change one that was released."""


def fingerprint() -> str:
    """Return a digest of everything that a reopened pin relies on."""
    declared = layout()
    meaning = (
        sorted(declared.constants.items()),
        [(name, dtype.descr) for name, dtype in sorted(declared.structs.items())],
        [(reason.name, reason.verdict.value) for reason in declared.reasons],
        [
            spec.name
            for spec in (*generation_specs(1, TableShape(9, 6, 6)), *persistent_specs(1, 1))
        ],
        (INDICES, NAT_FLOWS, RING_SLOTS, CLIENTS, UNPROVEN, FRAGMENTED, MAX_SNATS),
    )
    return blake2b(repr(meaning).encode(), digest_size=8).hexdigest()


def test_a_layout_number_means_one_layout() -> None:
    """Structs, constants and the order of reasons are those that the layout's number stands for."""
    assert LAYOUTS[layout().version] == fingerprint()
