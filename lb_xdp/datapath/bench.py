"""Nanoseconds a packet: times XDP programs by the kernel's own clock, net of the harness.

Owns the harness (``bpf/lb_bench.c``), its maps and its baselines, and what a median is taken of. It
refuses to know the program: whoever has one gives its descriptor, and says what it is to be sent.
The maps of that program are really written: on a live gateway give it twins (``bench_live.py``).

The kernel runs a program 100,000 times on one packet and tells what a run took. Each run goes
through a program that restores the packet; what a run takes with a program that only drops behind
it is the harness's own, and is taken off. Rounds go over all cases in turn, so that a noisy minute
falls on everybody.
"""

from __future__ import annotations

import mmap
import os
import statistics
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np

from lb_xdp.core.model import IPV4
from lb_xdp.datapath import syscall
from lb_xdp.datapath.bench_frames import Traffic, beginning, bench_layout, ip_checksums
from lb_xdp.datapath.compile import compile_functions
from lb_xdp.datapath.layout import source_dir
from lb_xdp.datapath.load import Program, load_program
from lb_xdp.datapath.maps import BpfMap, MapSpec
from lb_xdp.datapath.syscall import MapType

MAX_FLOWS = 1 << 20
REPEAT = 300_000
_RUN = 100_000
BASELINES = {
    "drop": "lb_drop",
    "MAC swap": "lb_mac_swap",
    "encap, IPv4": "lb_encap4",
    "encap, IPv6": "lb_encap6",
}
"""Functions of ``lb_bench.c`` by what they are called in reports."""

HARNESS = "drop"
_RESTORE = {4: "lb_restore4", 6: "lb_restore6"}
_SEND = "lb_send"
_FUNCTIONS = (*_RESTORE.values(), *BASELINES.values(), _SEND)
_PLACEHOLDER = 0x4C42_4200
_MAP_NAMES = ("bench", "flows", "programs")
_WORDS_AT = 2
_MMAPABLE = 1 << 10


class Case(NamedTuple):
    """One figure to find: a program, what it gets, and the interface that this seems to come by."""

    name: str
    program_fd: int
    traffic: Traffic
    ifindex: int


@dataclass(frozen=True, slots=True)
class Figure:
    """Nanoseconds a packet, over the harness; ``gross`` is the median with it."""

    median_ns: float
    min_ns: float
    gross_ns: float


class Harness:
    """The programs of ``lb_bench.c``, loaded. ``max_flows`` is a power of two."""

    def __init__(self, max_flows: int = MAX_FLOWS) -> None:
        u32 = np.dtype(np.uint32)
        structs = bench_layout().structs
        flows = np.dtype((structs["lb_bench_flow"], (max_flows,)))
        specs = (
            MapSpec("bench", MapType.ARRAY, u32, structs["lb_bench"], 1),
            MapSpec("flows", MapType.ARRAY, u32, flows, 1, _MMAPABLE),
            MapSpec("programs", MapType.PROG_ARRAY, u32, u32, 1),
        )
        code = _compile(max_flows)
        with ExitStack() as undo:
            self._maps = {spec.name: undo.enter_context(BpfMap.create(spec)) for spec in specs}
            descriptors = {_placeholder(name): m.fd for name, m in self._maps.items()}
            self._programs: dict[str, Program] = {}
            for name in _FUNCTIONS:
                program = load_program(code[name], descriptors, name)
                undo.callback(os.close, program.fd)
                self._programs[name] = program
            # Written in place: a system call would copy all of it for a single flow.
            memory = mmap.mmap(self._maps["flows"].fd, flows.itemsize)
            self._flows = np.frombuffer(memory, structs["lb_bench_flow"], max_flows)
            self._undo = undo.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def baseline(self, name: str) -> int:
        """Return the descriptor of a program of ``BASELINES``."""
        return self._programs[BASELINES[name]].fd

    def times_ns(self, case: Case, repeat: int = REPEAT, *, number: int = 0) -> list[int]:
        """Return what a repetition takes, harness included: one figure for every 100,000.

        ``number`` counts the calls for a case: at the first one every flow is sent once before, so
        that caches, and a flow table, know it; later ones go on where the last one ended. Many
        short runs tell more than a long one on a machine that has other work: the scheduler spoils
        only some.
        """
        flows = len(case.traffic.flows)
        if number == 0:
            self._open(case)
        self._prepare(case, number * repeat % flows)
        if number == 0:
            self._run(case, flows)
        runs = max(1, repeat // _RUN)
        return [self._run(case, min(repeat, _RUN)).duration_ns for _ in range(runs)]

    def _open(self, case: Case, flows: int | None = None) -> None:
        """Begin the flows, or the first ones: a service that records flows knows them then."""
        opening = case._replace(traffic=beginning(case.traffic))
        self._prepare(opening)
        self._run(opening, flows or len(case.traffic.flows))

    def _run(self, case: Case, repeat: int) -> syscall.TestRun:
        restore = self._programs[_RESTORE[case.traffic.family]].fd
        frame, ifindex = case.traffic.frame, case.ifindex
        while True:
            with suppress(InterruptedError):  # by a signal; Python's own handler has run
                return syscall.program_test_run(restore, frame, ifindex=ifindex, repeat=repeat)

    def send(self, traffic: Traffic, ifindex: int, frames: int) -> None:
        """Send that many frames by an interface of this network namespace, flow after flow."""
        fd = self._programs[_SEND].fd
        self._prepare(Case("send", fd, traffic, ifindex))
        restore = self._programs[_RESTORE[traffic.family]].fd
        syscall.program_send(restore, traffic.frame, ifindex=ifindex, repeat=frames)

    def action(self, case: Case) -> int:
        """Return the XDP action that the first flow's packet gets."""
        self._open(case, 1)
        self._prepare(case)
        return self._run(case, 1).action

    def _prepare(self, case: Case, first: int = 0) -> None:
        frame, flows = case.traffic.frame, case.traffic.flows
        value = np.zeros(1, bench_layout().structs["lb_bench"])
        words = bench_layout().constants["LB_BENCH_WORDS"]
        octets = frame[_WORDS_AT : _WORDS_AT + 8 * words].ljust(8 * words, b"\0")
        value["first"] = np.frombuffer(frame[:_WORDS_AT], "=u2")
        value["word"] = np.frombuffer(octets, "=u8")
        value["next"], value["flows"], value["frame_len"] = first, len(flows), len(frame)
        self._maps["bench"].write(0, value)
        self._flows[: len(flows)] = flows
        if case.traffic.family == IPV4:
            self._flows["check"][: len(flows)] = ip_checksums(case.traffic)
        self._maps["programs"].write(0, case.program_fd)


def _placeholder(name: str) -> int:
    return _PLACEHOLDER + _MAP_NAMES.index(name)


def _compile(max_flows: int) -> Mapping[str, bytes]:
    flags = [f"-DLB_BENCH_FLOWS={max_flows}"]
    flags += [f"-DLB_FD_{name}={_placeholder(name)}" for name in _MAP_NAMES]
    return compile_functions(source_dir() / "lb_bench.c", flags, _FUNCTIONS)


def measure(
    harness: Harness, cases: Sequence[Case], *, rounds: int, repeat: int = REPEAT
) -> dict[str, Figure]:
    """Time all cases ``rounds`` times in turn; return a figure for each by its name.

    Each case is set against the harness alone with as many flows of the same family, timed in the
    same rounds: median against median, minimum against minimum.
    """
    gross: dict[str, list[int]] = {case.name: [] for case in cases}
    empty: dict[tuple[int, int], list[int]] = {_shape(case): [] for case in cases}
    for number in range(rounds):
        done: set[tuple[int, int]] = set()
        for case in cases:
            bare = empty[_shape(case)]
            if _shape(case) not in done:
                done.add(_shape(case))
                drop = harness.baseline(HARNESS)
                bare += harness.times_ns(case._replace(program_fd=drop), repeat, number=number)
            gross[case.name] += harness.times_ns(case, repeat, number=number)
    return {case.name: _figure(gross[case.name], empty[_shape(case)]) for case in cases}


def _shape(case: Case) -> tuple[int, int]:
    return case.traffic.family, len(case.traffic.flows)


def _figure(gross: Sequence[int], empty: Sequence[int]) -> Figure:
    median_ns = statistics.median(gross)
    return Figure(median_ns - statistics.median(empty), min(gross) - min(empty), median_ns)
