"""What large arrays took goes back to the kernel with them, whatever came before."""

from __future__ import annotations

import subprocess
import sys

# In a process of its own: what the allocator keeps is a process's. As with the flow table, arrays
# are made in threads, and one that was freed is followed by others as large.
_CODE = """
import re, threading
from pathlib import Path
import numpy as np
from lb_xdp.native import keep_no_large_blocks

def resident_mb():
    return int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1e3

def look():
    arrays = [np.ones(size << 20, np.uint8) for size in (8, 16, 24, 8, 16, 24)]
    kept.append(bytearray(len(arrays)))

keep_no_large_blocks()
before_mb, kept = resident_mb(), []
for _ in range(3):
    worker = threading.Thread(target=look)
    worker.start()
    worker.join()
print(resident_mb() - before_mb)
"""


def test_large_arrays_leave_nothing_behind() -> None:
    """Of 96 MB in three threads each no thread's heap keeps a part; untold, glibc keeps it all."""
    command = [sys.executable, "-c", _CODE]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 96 / 4
