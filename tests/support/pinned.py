"""What a gateway's pinned maps hold, byte by byte, to be compared with what they held before.

This module owns reading; it refuses to know what the bytes mean (``lb_xdp.datapath.layout`` does).
Only what the controller alone writes is read: counters and flows change with every packet.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import numpy as np

from lb_xdp.datapath import syscall

BPFFS = Path("/sys/fs/bpf/lb-xdp")
_OF_THE_CONTROLLER = ("endpoints", "rings", "backends", "snats", "limits")
_ELEMENTS = 64  # a test has fewer backends


def pinned_state(gateway: str = "gw1") -> dict[str, str]:
    """Return a sum of the contents of each map by its path, and every other pin."""
    folder = BPFFS / gateway
    # Not rglob: some links' targets are no paths at all, and too long for one.
    pins = sorted(Path(where, name) for where, _, names in os.walk(folder) for name in names)
    return {str(path.relative_to(folder)): _contents(path) for path in pins}


def _contents(path: Path) -> str:
    if path.is_symlink():
        return str(path.readlink())
    if path.name not in _OF_THE_CONTROLLER:
        return ""
    whole = sha256()
    for element in _elements(path):
        whole.update(element)
    return whole.hexdigest()


def _elements(path: Path) -> Iterator[bytes]:
    descriptor = syscall.open_pin(str(path))
    try:
        info = syscall.map_info(descriptor)
        value = np.zeros(-(-info.value_size // 8) * 8, np.uint8)
        for number in range(min(info.max_entries, _ELEMENTS)):
            assert syscall.map_lookup(descriptor, np.array([number], np.uint32), value)
            yield value.tobytes()
    finally:
        os.close(descriptor)
