"""Nanoseconds per packet of the real program, net of the harness, beside baselines of the same run.

Run by ``scripts/bench``. Each figure is the kernel's own duration of a million repetitions through
``timing.c``; what a program that only drops costs through the same harness is taken off. Rounds go
over all cases in turn, so that a noisy minute falls on everybody; medians are printed.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether

from lb_xdp.core.model import Mode
from lb_xdp.datapath import syscall
from lb_xdp.datapath.compile import compile_source
from lb_xdp.datapath.load import load_program
from lb_xdp.datapath.maps import BpfMap, MapSpec
from lb_xdp.datapath.syscall import MapType
from tests.support import sandbox
from tests.support.program import (
    CLIENT,
    GATEWAY_MAC,
    INNER,
    OUTER,
    VIP,
    LoadedProgram,
    Wire,
    backend_address,
    service,
)

_SOURCE = Path(__file__).with_suffix(".c")
_TIMING, _PROGRAMS = 0x7A00_0000, 0x7A00_0001
_FRAME_OCTETS = 54
_LAYOUT = np.dtype(
    [
        ("next", "=u4"),
        ("flow_mask", "=u4"),
        ("reply", "u1"),
        ("frame", "u1", (_FRAME_OCTETS,)),
        ("pad", "u1"),
    ]
)
_FLOWS = {"1": 1, "1k": 1 << 10, "128k": 1 << 17, "1M": 1 << 20}
_REPEAT = 1_000_000
_ROUNDS = 7


@dataclass(frozen=True, slots=True)
class Case:
    """One row: a program, the frame it gets, and the interface the frame comes by."""

    name: str
    program_fd: int
    frame: Ether
    reply: bool = False
    ingress: str = OUTER


class Harness:
    """The wrapping program and its two maps."""

    def __init__(self, wire: Wire) -> None:
        u32 = np.dtype(np.uint32)
        self._indices = {i.name: i.index for i in wire.topology(1).interfaces.values()}
        self._timing = BpfMap.create(MapSpec("timing", MapType.ARRAY, u32, _LAYOUT, 1))
        self._programs = BpfMap.create(MapSpec("programs", MapType.PROG_ARRAY, u32, u32, 1))
        self._fd = self.load("lb_restore")

    def load(self, function: str) -> int:
        """Load a function of timing.c."""
        flags = [f"-DLB_FD_timing={_TIMING}", f"-DLB_FD_programs={_PROGRAMS}"]
        descriptors = {_TIMING: self._timing.fd, _PROGRAMS: self._programs.fd}
        return load_program(compile_source(_SOURCE, flags, function), descriptors, function).fd

    def time_ns(self, case: Case, flows: int) -> int:
        """Return what one repetition of a case takes, harness included."""
        value = np.zeros(1, dtype=_LAYOUT)
        value["flow_mask"], value["reply"] = flows - 1, case.reply
        value["frame"] = list(bytes(case.frame)[:_FRAME_OCTETS])
        self._timing.write(0, value)
        self._programs.write(0, case.program_fd)
        frame, ifindex = bytes(case.frame), self._indices[case.ingress]
        syscall.program_test_run(self._fd, frame, ifindex=ifindex, repeat=flows)
        run = syscall.program_test_run(self._fd, frame, ifindex=ifindex, repeat=_REPEAT)
        return run.duration_ns


def _frame(source: str, destination: str, sport: int, dport: int, flags: str = "A") -> Ether:
    # The last octets of the client's address are 0, so that flows stay inside its own /16.
    header = IP(src=source, dst=destination, ttl=64)
    return Ether(dst=GATEWAY_MAC) / header / TCP(sport=sport, dport=dport, flags=flags)


@contextmanager
def _cases(wire: Wire, harness: Harness) -> Iterator[tuple[Case, list[Case]]]:
    """Yield the case that stands for the harness alone, and those to report."""
    client = str(CLIENT)
    with (
        LoadedProgram(wire, service(Mode.DSR)) as dsr,
        LoadedProgram(wire, service(Mode.NAT, backend_port=8080)) as nat,
    ):
        to_vip = _frame(client, str(VIP), 0, 80)
        syn = _frame(client, str(VIP), 0, 80, "S")
        other = _frame(client, "10.9.9.9", 0, 80)
        back = _frame(str(backend_address(1)), client, 8080, 0)
        dsr_fd, nat_fd = dsr.generation.program.fd, nat.generation.program.fd
        yield (
            Case("harness", harness.load("lb_drop"), to_vip),
            [
                Case("bare MAC swap", harness.load("lb_mac_swap"), to_vip),
                Case("dsr, one-armed", dsr_fd, to_vip, ingress=INNER),
                Case("dsr, one-armed, SYN", dsr_fd, syn, ingress=INNER),
                Case("dsr, two-armed", dsr_fd, to_vip),
                Case("nat request, one-armed", nat_fd, to_vip, ingress=INNER),
                Case("nat request, two-armed", nat_fd, to_vip),
                Case("nat reply, two-armed", nat_fd, back, reply=True, ingress=INNER),
                Case("not for a VIP (dsr)", dsr_fd, other),
                Case("not for a VIP (nat)", nat_fd, other),
            ],
        )


def measure(rounds: int = _ROUNDS) -> dict[str, dict[str, float]]:
    """Return the median net nanoseconds: case -> number of flows -> ns."""
    wire = Wire()
    harness = Harness(wire)
    times: dict[tuple[str, str], list[int]] = {}
    with _cases(wire, harness) as (bare, cases):
        for _ in range(rounds):
            for label, flows in _FLOWS.items():
                empty = harness.time_ns(bare, flows)
                for case in cases:
                    net = harness.time_ns(case, flows) - empty
                    times.setdefault((case.name, label), []).append(net)
        names = [case.name for case in cases]
    wire.close()
    return {
        name: {label: statistics.median(times[name, label]) for label in _FLOWS} for name in names
    }


def _table(results: dict[str, dict[str, float]]) -> Table:
    table = Table(title="ns per packet, net of the harness (median)")
    table.add_column("case")
    for label in _FLOWS:
        table.add_column(f"{label} flows", justify="right")
    for name, figures in results.items():
        table.add_row(name, *(f"{figures[label]:.0f}" for label in _FLOWS))
    return table


def main(arguments: Sequence[str], out: Callable[[object], None] | None = None) -> int:
    """Measure and print; ``--json`` prints one object instead of a table."""
    sandbox.enter()
    results = measure()
    where = f"Linux {platform.release()}, {os.cpu_count()} CPUs, {datetime.now(UTC):%Y-%m-%d}"
    show = out or Console(width=100).print
    if "--json" in arguments:
        sys.stdout.write(json.dumps({"machine": where, "ns": results}) + "\n")
    else:
        show(_table(results))
        show(where)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
