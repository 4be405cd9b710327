"""The clock of the data plane: jiffies, which cost a program nothing to read.

User space cannot read them, so a program of two instructions does. Flow records carry the low 32
bits; how many there are in a second is a matter of how the kernel was built (CONFIG_HZ).
"""

from __future__ import annotations

import os
import struct
import time
from functools import cache

from lb_xdp.datapath import syscall

_CALL_JIFFIES64 = struct.pack("=BBhi", 0x85, 0, 0, 118)
_EXIT = struct.pack("=BBhi", 0x95, 0, 0, 0)
_FRAME = bytes(14)
_KNOWN_HZ = (100, 250, 300, 1000)
_BOOT_S = 300  # jiffies begin that long before they overflow (INITIAL_JIFFIES)
_OFF_S = 5.0  # by how much jiffies and the monotonic clock may differ
_MEASURE_S = 0.2


@cache
def _program() -> int:
    """Return the program's descriptor: kept open, a process needs it again and again."""
    fd, _ = syscall.program_load(_CALL_JIFFIES64 + _EXIT, "lb_jiffies")
    return fd


def jiffies() -> int:
    """Return the low 32 bits of the kernel's jiffies. Raises OSError."""
    return syscall.program_test_run(_program(), _FRAME, ifindex=None).action


@cache
def jiffies_per_s() -> int:
    """Return the kernel's HZ: from how far jiffies have come since boot, else by measuring."""
    now, since_boot_s = jiffies(), time.monotonic()
    for hz in _KNOWN_HZ:
        came = (now + _BOOT_S * hz) % 2**32
        off = (came - int(since_boot_s * hz)) % 2**32
        if min(off, 2**32 - off) < _OFF_S * hz:
            return hz
    time.sleep(_MEASURE_S)
    rate = (jiffies() - now) % 2**32 / (time.monotonic() - since_boot_s)
    return min(_KNOWN_HZ, key=lambda hz: abs(hz - rate))


def close() -> None:
    """Give the descriptor back."""
    if _program.cache_info().currsize:
        os.close(_program())
        _program.cache_clear()
