"""Where the kernel headers are that BCC compiles against.

BCC wants ``/lib/modules/$(uname -r)/build``. A host with a kernel of its own may have none; then
the distribution's generic headers serve, of any version: an XDP program uses the stable uapi only.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

from lb_xdp.errors import CompileError

_ARCHITECTURES = {"x86_64": "x86", "aarch64": "arm64"}
_GENERATED = ("include", "arch/{arch}/include/generated", "include/generated/uapi",
              "arch/{arch}/include/generated/uapi")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Headers:
    """What the compiler needs to find them. ``exact``: they are the running kernel's own."""

    path: Path
    environment: dict[str, str]
    cflags: tuple[str, ...]
    exact: bool


def find_headers(root: Path = Path("/")) -> Headers:
    """Return the best headers on this host. Raises CompileError with the remedy."""
    own = root / "lib/modules" / os.uname().release / "build"
    if (own / "include").is_dir():
        return Headers(own, {}, (), exact=True)
    for path in sorted((root / "usr/src").glob("linux-headers-*"), key=_version, reverse=True):
        if (path / "include/generated").is_dir():
            return _generic(path)
    raise CompileError(
        "no kernel headers: neither /lib/modules/$(uname -r)/build nor /usr/src/linux-headers-*; "
        "run scripts/setup, or: apt install linux-headers-$(uname -r) "
        "(for a custom kernel linux-headers-amd64 serves as well)"
    )


def _version(path: Path) -> tuple[int, ...]:
    digits = "".join(c if c.isdigit() else " " for c in path.name).split()
    return tuple(map(int, digits))


def _generic(path: Path) -> Headers:
    arch = _ARCHITECTURES.get(platform.machine(), platform.machine())
    flags = tuple(f"-I{path / folder.format(arch=arch)}" for folder in _GENERATED)
    return Headers(path, {"BCC_KERNEL_SOURCE": str(_common(path))}, flags, exact=False)


def _common(path: Path) -> Path:
    """Debian splits headers in two packages: ...-amd64 and the architecture-free ...-common."""
    common = path.with_name(path.name.rsplit("-", 1)[0] + "-common")
    return common if common.is_dir() else path
