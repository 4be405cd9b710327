"""Python's view of the C headers: what the parser takes, and what it refuses to guess."""

from __future__ import annotations

import numpy as np
import pytest

from lb_xdp.core.snapshot import Verdict
from lb_xdp.datapath.layout import layout, parse_layout
from lb_xdp.errors import DatapathError

GOOD = """
#define LB_LAYOUT 7
#define LB_DEPTH 2
struct lb_inner {
	__be32 address; /* a comment; with a semicolon */
	__be16 port;
	__u16 pad;
};
LB_SIZE(lb_inner, 8);
struct lb_outer {
	struct lb_inner entry[LB_DEPTH];
	__u8 mac[6];
	__u8 pad[2];
	__u64 packets;
};
LB_SIZE(lb_outer, 32);
"""
REASONS = 'X(forwarded,  FORWARD, "sent") \\\n X(not_vip, PASS, "other")'


def test_structs_nest_and_convert_byte_order() -> None:
    """Big-endian fields are host-order integers in Python, and bytes in wire order in memory."""
    parsed = parse_layout(GOOD, REASONS)
    value = np.zeros((), parsed.structs["lb_outer"])
    value["entry"]["address"][1] = 0xCB00710A
    value["entry"]["port"][1] = 80
    value["packets"] = 5
    assert value.tobytes()[8:14] == bytes([203, 0, 113, 10, 0, 80])
    assert int(value["entry"]["address"][1]) == 0xCB00710A
    assert value.nbytes == 32
    assert parsed.version == 7


def test_reasons_keep_their_order() -> None:
    """A reason's index is its line's place, and its verdict the one named there."""
    reasons = parse_layout(GOOD, REASONS).reasons
    assert [(r.index, r.name, r.verdict) for r in reasons] == [
        (0, "forwarded", Verdict.FORWARD),
        (1, "not_vip", Verdict.PASS),
    ]


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("LB_SIZE(lb_inner, 8)", "LB_SIZE(lb_inner, 12)", "8 bytes in Python, 12 in C"),
        ("LB_SIZE(lb_inner, 8);", "", "not asserted"),
        ("__u64 packets", "__u128 packets", "cannot read `__u128 packets`"),
        ("__u16 pad;", "", "6 bytes in Python"),
        ("__u64 packets", "__u64 packets : 3", "cannot read"),
    ],
)
def test_what_c_and_python_would_see_differently_is_refused(
    before: str, after: str, said: str
) -> None:
    """A size that differs, a size nobody asserts and a type that is not known are errors."""
    assert before in GOOD
    with pytest.raises(DatapathError, match=said):
        parse_layout(GOOD.replace(before, after, 1), REASONS)


def test_the_real_headers_parse() -> None:
    """Every struct of the program has its asserted size, and no reason is named twice."""
    real = layout()
    assert real.structs["lb_bucket"].itemsize == 64
    names = [reason.name for reason in real.reasons]
    assert len(set(names)) == len(names) > 10
