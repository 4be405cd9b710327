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
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path

from lb_xdp.core.desired import Structure
from lb_xdp.core.model import ANY_PORT, Mode
from lb_xdp.core.ring import RING_SLOTS
from lb_xdp.datapath.bcc_child import EXIT_NO_BCC
from lb_xdp.datapath.headers import Headers, find_headers
from lb_xdp.datapath.layout import source_dir
from lb_xdp.errors import CompileError

ENTRY = "lb_gateway"
GENERAL = {
    "lb_general4": "LB_PROGRAM_GENERAL4",
    "lb_general6": "LB_PROGRAM_GENERAL6",
    "lb_rest4": "LB_PROGRAM_REST4",
    "lb_rest6": "LB_PROGRAM_REST6",
}
"""The programs that do what is not plain, and where each stands in the map ``programs``."""

_PLACEHOLDER = 0x4C42_0000
_TIMEOUT_S = 300  # twenty seconds is usual on an emulated machine
_WAY_BITS = 15  # 1.3 MB for each CPU
_WAY_BITS_MANY_CPUS = 12
_MANY_CPUS = 16
_ERROR = re.compile(
    r"^(?P<file>[^:\n]+):(?P<line>\d+):\d+: (?:fatal )?error: (?P<text>.*)$", re.MULTILINE
)

MAP_NAMES = (
    "endpoints",
    "rings",
    "backends",
    "programs",
    "snats",
    "devices",
    "counts",
    "reasons",
    "flows",
    "flow_counts",
    "returns",
    "affinities",
    "limits",
    "active",
    "nat_flows",
    "nat_marks",
    "fragments",
    "ways",
    "budget",
    "handshakes",
    "watched",
    "unproven",
)


def way_bits() -> int:
    """Return the size, as a power of two, of each CPU's memory of ways to clients."""
    return _WAY_BITS if (os.cpu_count() or 1) <= _MANY_CPUS else _WAY_BITS_MANY_CPUS


@dataclass(frozen=True, slots=True)
class Parameters:
    """What the sources are compiled for: nothing that no service uses is in the program.

    ``features`` are names of ``FEATURES``; the rest are sizes, as powers of two, and jiffies a
    second.
    """

    features: frozenset[str]
    filter_bits: int
    bucket_bits: int
    bucket6_bits: int
    hz: int

    def cflags(self) -> list[str]:
        """Return the compiler's arguments."""
        flags = [
            f"-DLB_RING_SLOTS={RING_SLOTS}",
            f"-DLB_FILTER_BITS={self.filter_bits}",
            f"-DLB_BUCKET_BITS={self.bucket_bits}",
            f"-DLB_BUCKET6_BITS={self.bucket6_bits}",
            f"-DLB_WAY_BITS={way_bits()}",
            f"-DLB_HZ={self.hz}",
        ]
        flags += [f"-DLB_{name}={int(name in self.features)}" for name in FEATURES]
        return flags + [f"-DLB_FD_{name}={placeholder(name)}" for name in MAP_NAMES]


FEATURES = (
    "IPV4",
    "IPV6",
    "DSR",
    "IPIP",
    "GUE",
    "NAT",
    "FULLNAT",
    "OUTER4",
    "OUTER6",
    "FLOWS",
    "TRACKED",
    "CLIENTS",
    "COUNTED",
    "BY_SOURCE",
    "ANY_PORT",
    "REJECT",
    "RESET",
    "WATCH",
)
"""What may be compiled in or left out; bpf/lb_xdp.c says what each is."""


def features(structure: Structure) -> frozenset[str]:
    """Return what a structure's services need."""
    services = structure.services
    used = {traits.mode.name for traits in services.values()}
    used |= {f"IPV{key.vip.version}" for key in services}
    tunnels = {key for key, traits in services.items() if traits.mode.tunnel}
    used |= {f"OUTER{backend[0]}" for service, backend in structure.backends if service in tunnels}
    each = services.values()
    wanted = {
        "FLOWS": any(not traits.stateless for traits in each),
        "TRACKED": any(traits.tracked for traits in each),
        "CLIENTS": any(traits.client for traits in each),
        "COUNTED": any(traits.counted for traits in each),
        "BY_SOURCE": any(traits.by_source for traits in each),
        "ANY_PORT": any(key.port == ANY_PORT for key in services),
        "REJECT": any(traits.reject for traits in each),
        "RESET": any(traits.reset or traits.mode is Mode.FULLNAT for traits in each),
        "WATCH": any(traits.watched for traits in each),
    }
    return frozenset(used | {name for name, needed in wanted.items() if needed})


@dataclass(frozen=True, slots=True)
class Code:
    """Compiled instructions, 8 bytes each, with placeholders for map descriptors.

    ``general`` holds by name what ``gateway`` hands packets to that are not plain.
    """

    gateway: bytes
    general: Mapping[str, bytes]
    parameters: Parameters


def placeholder(name: str) -> int:
    """Return the number that stands for a map until the loader knows its descriptor."""
    return _PLACEHOLDER + MAP_NAMES.index(name)


@lru_cache(maxsize=1)
def build_id() -> int:
    """Return 64 bits that identify the program's sources and fixed parameters."""
    digest = blake2b(str(RING_SLOTS).encode(), digest_size=8)
    for path in sorted(source_dir().glob("*.[ch]")):
        if not path.name.startswith(("lb_decap", "lb_bench")):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return int.from_bytes(digest.digest(), "little")


@lru_cache(maxsize=8)
def compile_gateway(parameters: Parameters) -> Code:
    """Compile the gateway's programs. Raises CompileError; blocks for a second or three."""
    folder = source_dir()
    cflags = [f"-I{folder}", *parameters.cflags()]
    general = [name for name in GENERAL if _is_needed(name, parameters.features)]
    compiled = compile_functions(folder / "lb_xdp.c", cflags, (ENTRY, *general))
    return Code(compiled[ENTRY], {name: compiled[name] for name in general}, parameters)


def _is_needed(name: str, features: Collection[str]) -> bool:
    """Return whether a general program is: errors about tunnels are ``lb_rest*``'s, too."""
    family = name[-1]
    return f"IPV{family}" in features or ("rest" in name and f"OUTER{family}" in features)


def compile_source(source: Path, cflags: list[str], function: str) -> bytes:
    """Compile one function of one C file by BCC, in a process of its own."""
    return compile_functions(source, cflags, (function,))[function]


def compile_functions(
    source: Path, cflags: list[str], functions: Sequence[str]
) -> dict[str, bytes]:
    """Compile functions of one C file by BCC, in a process of its own."""
    headers = find_headers()
    request = {
        "source": str(source),
        "cflags": [*headers.cflags, *cflags],
        "functions": list(functions),
    }
    kept = _place_in_cache(source, request)
    if kept is not None and kept.exists():
        text = kept.read_text(encoding="ascii")
    else:
        text = _compile(source, request, headers)
    if kept is not None and not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        written = kept.with_name(f"{kept.name}.{os.getpid()}")
        written.write_text(text, encoding="ascii")
        written.replace(kept)
    found = json.loads(text)["instructions"]
    return {function: bytes.fromhex(found[function]) for function in functions}


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


def _compile(source: Path, request: Mapping[str, object], headers: Headers) -> str:
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
    return done.stdout


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
