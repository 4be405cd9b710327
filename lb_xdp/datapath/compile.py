"""From C to instructions: runs the compiler child, and turns what it says into errors.

The result has placeholders where map descriptors go, so one compilation serves any number of loads;
results are remembered by their parameters for as long as the process lives.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path

from lb_xdp.core.ring import RING_SLOTS
from lb_xdp.datapath.bcc_child import EXIT_NO_BCC
from lb_xdp.datapath.headers import Headers, find_headers
from lb_xdp.datapath.layout import source_dir
from lb_xdp.errors import CompileError

ENTRY = "lb_gateway"
_PLACEHOLDER = 0x4C42_0000
_TIMEOUT_S = 300  # twenty seconds is usual on an emulated machine
_ERROR = re.compile(
    r"^(?P<file>[^:\n]+):(?P<line>\d+):\d+: (?:fatal )?error: (?P<text>.*)$", re.MULTILINE
)

MAP_NAMES = (
    "endpoints",
    "rings",
    "backends",
    "counts",
    "reasons",
    "nat_flows",
    "nat_marks",
    "devices",
)


@dataclass(frozen=True, slots=True)
class Parameters:
    """What the sources are compiled for: nothing that no service uses is in the program."""

    bucket_bits: int
    nat: bool
    dsr: bool

    def cflags(self) -> list[str]:
        """Return the compiler's arguments."""
        flags = [
            f"-DLB_RING_SLOTS={RING_SLOTS}",
            f"-DLB_BUCKET_BITS={self.bucket_bits}",
            f"-DLB_NAT={int(self.nat)}",
            f"-DLB_DSR={int(self.dsr)}",
        ]
        return flags + [f"-DLB_FD_{name}={placeholder(name)}" for name in MAP_NAMES]


@dataclass(frozen=True, slots=True)
class Code:
    """Compiled instructions, 8 bytes each, with placeholders for map descriptors."""

    instructions: bytes
    parameters: Parameters


def placeholder(name: str) -> int:
    """Return the number that stands for a map until the loader knows its descriptor."""
    return _PLACEHOLDER + MAP_NAMES.index(name)


@lru_cache(maxsize=1)
def build_id() -> int:
    """Return 64 bits that identify the program's sources and fixed parameters."""
    digest = blake2b(str(RING_SLOTS).encode(), digest_size=8)
    for path in sorted(source_dir().glob("*.[ch]")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return int.from_bytes(digest.digest(), "little")


@lru_cache(maxsize=8)
def compile_gateway(parameters: Parameters) -> Code:
    """Compile the gateway program. Raises CompileError; blocks for about a second."""
    folder = source_dir()
    return Code(
        compile_source(folder / "lb_xdp.c", [f"-I{folder}", *parameters.cflags()], ENTRY),
        parameters,
    )


def compile_source(source: Path, cflags: list[str], function: str) -> bytes:
    """Compile one function of one C file by BCC, in a process of its own."""
    headers = find_headers()
    request = {
        "source": str(source),
        "cflags": [*headers.cflags, *cflags],
        "function": function,
    }
    kept = _place_in_cache(source, request)
    if kept is not None and kept.exists():
        return kept.read_bytes()
    instructions = _compile(source, request, headers)
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        written = kept.with_name(f"{kept.name}.{os.getpid()}")
        written.write_bytes(instructions)
        written.replace(kept)
    return instructions


def _place_in_cache(source: Path, request: Mapping[str, object]) -> Path | None:
    """Return where LB_XDP_COMPILE_CACHE, a folder, keeps what came of this very request.

    For tests on an emulated machine, where each process would compile for half a minute. The
    compiler and the headers are taken to be the same as long as the folder is kept.
    """
    folder = os.environ.get("LB_XDP_COMPILE_CACHE")
    if not folder:
        return None
    digest = blake2b(json.dumps(request).encode(), digest_size=16)
    for path in sorted({source, *source.parent.glob("*.[ch]"), *source_dir().glob("*.[ch]")}):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return Path(folder, digest.hexdigest())


def _compile(source: Path, request: Mapping[str, object], headers: Headers) -> bytes:
    try:
        done = subprocess.run(
            [sys.executable, "-m", "lb_xdp.datapath.bcc_child"],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            check=False,
            timeout=_TIMEOUT_S,
            env={**os.environ, **headers.environment},
        )
    except subprocess.TimeoutExpired as error:
        raise CompileError(f"no result after {_TIMEOUT_S} s", file=str(source)) from error
    if done.returncode != 0:
        raise _compile_error(done, source)
    return bytes.fromhex(json.loads(done.stdout)["instructions"])


def _compile_error(done: subprocess.CompletedProcess[str], source: Path) -> CompileError:
    if done.returncode == EXIT_NO_BCC:
        return CompileError(
            f"bcc cannot be imported by {sys.executable}: {done.stderr.strip()}. It comes from the "
            "distribution, not from PyPI: apt install python3-bpfcc, and a venv made from "
            "/usr/bin/python3 with --system-site-packages; scripts/setup does both"
        )
    match = _ERROR.search(done.stderr)
    if match:
        file, line = match["file"], int(match["line"])
        return CompileError(match["text"], file=file, line=line, output=done.stderr)
    said = done.stderr.strip().splitlines() or ["it said nothing"]
    return CompileError(
        f"the compiler ended with {done.returncode}: {said[-1]}",
        file=str(source),
        output=done.stderr,
    )
