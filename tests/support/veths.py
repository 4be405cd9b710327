"""Interfaces in the sandbox's own namespace, for programs that only have to be attached."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lb_xdp.core.topology import Interface


@contextmanager
def veths(*names: str) -> Iterator[dict[str, Interface]]:
    """Have interfaces of these names, up; their other ends end in ``p``."""
    for name in names:
        ends = f"{name} type veth peer name {name}p".split()
        subprocess.run(["ip", "link", "add", *ends], check=True)
        for end in (name, f"{name}p"):
            subprocess.run(["ip", "link", "set", end, "up"], check=True)
    yield {name: _interface(name) for name in names}
    for name in names:
        subprocess.run(["ip", "link", "del", name], check=True)


def _interface(name: str) -> Interface:
    folder = Path("/sys/class/net") / name
    mac = bytes.fromhex((folder / "address").read_text(encoding="ascii").strip().replace(":", ""))
    return Interface(
        name, int((folder / "ifindex").read_text(encoding="ascii")), mac, 1500, up=True
    )
