"""What the maps of two versions have in common, by what each said of its own."""

from __future__ import annotations

from lb_xdp.datapath.estate import formats, means_the_same

_SYMLINK_BYTES = 4096


def test_formats_say_what_bytes_mean() -> None:
    """Constants may be added; other fields, other values and other reasons mean something else."""
    flows, reasons = formats()["flows"], formats()["reasons"]
    assert "LB_FLOW_CLOSED=16" in flows
    assert means_the_same(flows.replace(",LB_FLOW_CLOSED=16", ""), flows)
    assert not means_the_same(flows, flows.replace(",LB_FLOW_CLOSED=16", ""))
    assert not means_the_same(flows.replace("CLOSED=16", "CLOSED=32"), flows)
    assert not means_the_same(flows.replace(">u4", "=u4", 1), flows)
    assert not means_the_same(reasons.replace("not_vip", "no_vip"), reasons)
    assert all(
        means_the_same(text, text) and len(text) < _SYMLINK_BYTES for text in formats().values()
    )
