"""Where pins live: finding the BPF file system, and the folders of one gateway in it.

    <bpffs>/lb-xdp/<gateway>/links/<interface>        one bpf_link for each interface
    <bpffs>/lb-xdp/<gateway>/v<layout>/maps/<map>     persistent maps
    <bpffs>/lb-xdp/<gateway>/v<layout>/gen-<n>/...    a generation: its maps and its program
    <bpffs>/lb-xdp/<gateway>/v<layout>/formats/<map>  what the bytes of a map mean (``estate``)

bpffs takes no dots in names, so they are escaped (an interface may be called eth0.100).
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from lb_xdp.errors import DatapathError

_DEFAULT = Path("/sys/fs/bpf")
_OF_INIT = Path("/proc/1/root/sys/fs/bpf")
_FOLDER = "lb-xdp"


def is_bpffs(path: Path) -> bool:
    """Whether a BPF file system is mounted right there."""
    try:
        with Path("/proc/self/mountinfo").open(encoding="utf-8") as mounts:
            mounted = [line.split() for line in mounts]
    except OSError:
        return False
    return any(
        fields[4] == str(path) and fields[fields.index("-") + 1] == "bpf" for fields in mounted
    )


def find_bpffs() -> Path:
    """Return the BPF file system, mounting it at /sys/fs/bpf if need be.

    ``ip netns exec`` gives its command a /sys of its own, in which nothing is mounted and whose
    mounts end with the command: then the one that init sees is meant, through /proc/1/root.
    Raises DatapathError.
    """
    if is_bpffs(_DEFAULT):
        return _DEFAULT
    if _own_mount_namespace():
        if not _init_has_bpffs():
            _mount("nsenter", "--mount=/proc/1/ns/mnt")
        return _OF_INIT
    _mount()
    return _DEFAULT


def _own_mount_namespace() -> bool:
    try:
        return Path("/proc/self/ns/mnt").readlink() != Path("/proc/1/ns/mnt").readlink()
    except OSError:
        return False


def _init_has_bpffs() -> bool:
    lines = Path("/proc/1/mountinfo").read_text(encoding="utf-8").splitlines()
    return any(
        fields[4] == str(_DEFAULT) and fields[fields.index("-") + 1] == "bpf"
        for fields in map(str.split, lines)
    )


def _mount(*prefix: str) -> None:
    command = [*prefix, "mount", "-t", "bpf", "bpf", str(_DEFAULT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise DatapathError(
            f"no BPF file system at {_DEFAULT}, and it cannot be mounted: {done.stderr.strip()}; "
            f"as root: mount -t bpf bpf {_DEFAULT}"
        )


def escape(name: str) -> str:
    """Return a name that bpffs takes; ``unescape`` gives it back."""
    return name.replace("%", "%25").replace(".", "%2E")


def unescape(name: str) -> str:
    """Undo ``escape``."""
    return name.replace("%2E", ".").replace("%25", "%")


class Pins:
    """The folders of one gateway. Making them is left to ``prepare``; reading needs nothing."""

    def __init__(self, bpffs: Path, gateway: str, layout: int) -> None:
        self.gateway = gateway
        self.root = bpffs / _FOLDER / escape(gateway)
        self.links = self.root / "links"
        self.versioned = self.root / f"v{layout}"
        self.maps = self.versioned / "maps"
        self.formats = self.versioned / "formats"

    def prepare(self) -> None:
        """Make the folders."""
        for folder in (self.links, self.maps):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def link(self, interface: str) -> Path:
        """Return where an interface's link is pinned."""
        return self.links / escape(interface)

    def linked_interfaces(self) -> list[str]:
        """Return the interfaces that have a pinned link, live or not."""
        return sorted(unescape(path.name) for path in _children(self.links))

    def generation(self, number: int) -> Path:
        """Return a generation's folder."""
        return self.versioned / f"gen-{number}"

    def generations(self) -> list[int]:
        """Return the numbers of the generations that are there, complete or not."""
        found = (path.name.removeprefix("gen-") for path in _children(self.versioned))
        return sorted(int(number) for number in found if number.isdigit())

    def other_layouts(self) -> list[Path]:
        """Return the folders that another version of lb_xdp left."""
        return [
            path
            for path in _children(self.root)
            if path.name.startswith("v") and path != self.versioned
        ]

    def remove_generation(self, number: int) -> None:
        """Unpin a generation; the kernel frees what nothing refers to any more."""
        shutil.rmtree(self.generation(number), ignore_errors=True)

    def remove_layout(self, folder: Path) -> None:
        """Unpin what another version left."""
        shutil.rmtree(folder, ignore_errors=True)

    def remove(self) -> None:
        """Unpin everything of this gateway, and the common folder with its last gateway."""
        shutil.rmtree(self.root, ignore_errors=True)
        if not _children(self.root.parent):
            shutil.rmtree(self.root.parent, ignore_errors=True)


def pinned_gateways(bpffs: Path) -> list[str]:
    """Return the names of the gateways that have pins."""
    return sorted(unescape(path.name) for path in _children(bpffs / _FOLDER))


def _children(folder: Path) -> list[Path]:
    try:
        return sorted(Path(entry.path) for entry in os.scandir(folder))
    except FileNotFoundError:
        return []
