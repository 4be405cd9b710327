"""What a start of this version would lose of what another one forwards with: asked beforehand.

It changes nothing, and refuses to decide whether that may be lost: whoever starts does.
"""

from __future__ import annotations

from contextlib import ExitStack, closing
from pathlib import Path

from lb_xdp.datapath.attach import open_link
from lb_xdp.datapath.bpffs import Pins, find_bpffs
from lb_xdp.datapath.estate import find_estate
from lb_xdp.datapath.layout import layout


def would_lose(gateway: str, bpffs: Path | None = None) -> tuple[str, ...]:
    """Return in words what would start anew, nothing where the layout is this version's.

    Raises DatapathError where the pins cannot be read.
    """
    pins = Pins(bpffs or find_bpffs(), gateway, layout().version)
    if not pins.other_layouts():
        return ()
    with ExitStack() as stack:
        opened = [open_link(name, pins.link(name)) for name in pins.linked_interfaces()]
        links = [stack.enter_context(closing(link)) for link in opened if link is not None]
        estate = find_estate(pins, {link.info.program_id for link in links})
    return estate.lost if estate else ()
