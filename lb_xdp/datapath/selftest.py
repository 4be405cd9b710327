"""A freshly loaded program is tried before any interface runs it: against the reference model.

The same instructions are loaded once more, onto twins of the maps that a program writes, since a
test run really changes maps; a few hundred packets made from the configuration go through. The
generation's own tables are read as they are. It owns the trial, not the consequences: a difference
raises SelfTestError, and what was forwarding goes on.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from mmap import mmap
from typing import Final, NamedTuple

import numpy as np

from lb_xdp.core.plan import INDICES, Plan
from lb_xdp.core.reference import Found, Model, difference
from lb_xdp.core.reference.trial import Trial
from lb_xdp.datapath import syscall
from lb_xdp.datapath.compile import Code, way_bits
from lb_xdp.datapath.generation import Generation, load_programs
from lb_xdp.datapath.layout import layout
from lb_xdp.datapath.maps import MMAPABLE, BpfMap, MapSpec, Values, persistent_specs
from lb_xdp.datapath.syscall import MapType
from lb_xdp.errors import SelfTestError

_LOOPBACK: Final = 1
_ACTIONS: Final = {0: "aborted", 1: "drop", 2: "pass", 3: "tx", 4: "redirect"}
_TWIN_ENTRIES: Final = 8192
_HASHES: Final = frozenset({MapType.HASH, MapType.LRU_HASH})
_MAX_CHOICES: Final = 32
_NOTHING: Final = bytes(64)


class Tried(NamedTuple):
    """How many packets went through, and for how many of them the model knew the outcome."""

    packets: int
    foretold: int


def verify_generation(plan: Plan, generation: Generation, code: Code) -> Tried:
    """Compare a generation that nothing runs yet with the reference model.

    ``code`` is what the generation's programs were loaded from. Raises SelfTestError at the first
    difference, VerifierError or MapError if the twins cannot be made.
    """
    with twin(plan, generation, code) as bench:
        return bench.compare(plan)


def _judge(model: Model, ingress: int, frame: bytes, found: Found) -> bool:
    """Return whether the model knew. Raises SelfTestError if it knew better."""
    expected = model.journey(frame, ingress)
    if expected.unknown and not expected.among:
        return False
    possible = [expected]
    if expected.unknown:
        among = expected.among[:_MAX_CHOICES]
        possible = [model.journey(frame, ingress, choice) for choice in among]
    said = [difference(frame, ingress, outcome, found) for outcome in possible]
    if None not in said:
        raise SelfTestError(
            "the new program does not do what the reference model does. It is not used, and what "
            f"was forwarding goes on. A bug, please report:\n{said[0]}"
        )
    return True


class Bench:
    """A program on twins, and the counters that say why each packet ended as it did."""

    def __init__(self, program_fd: int, counters: Values, interfaces: Collection[int]) -> None:
        self._fd = program_fd
        self._counters = counters
        self.ingress = next(filter(self._takes, sorted(interfaces)), _LOOPBACK)

    def compare(self, plan: Plan) -> Tried:
        """Compare with the reference model. Raises SelfTestError at the first difference."""
        model = Model(
            plan.structure,
            plan.indices,
            plan.records,
            plan.rings,
            set(plan.interfaces.values()),
            blank=True,
        )
        packets = foretold = 0
        for frame in Trial(plan.structure):
            packets += 1
            foretold += _judge(model, self.ingress, frame, self.run(frame))
        return Tried(packets, foretold)

    def _takes(self, ifindex: int) -> bool:
        """Say whether the kernel lets a packet come in there.

        EINVAL: no receive queue that knows XDP, as with a veth before its first program. ENODEV:
        gone by now. Loopback always serves.
        """
        try:
            self._run(_NOTHING, ifindex)
        except OSError as error:
            if error.errno in {errno.EINVAL, errno.ENODEV}:
                return False
            raise
        return True

    def _run(self, frame: bytes, ifindex: int) -> syscall.TestRun:
        return syscall.program_test_run(
            self._fd, frame, ifindex=None if ifindex == _LOOPBACK else ifindex
        )

    def run(self, frame: bytes) -> Found:
        """Run one packet. Raises OSError if the kernel does not."""
        before = self._counters.copy()
        run = self._run(frame, self.ingress)
        return Found(_ACTIONS[run.action], _told(self._counters - before), run.packet)


def _told(counted: Values) -> str:
    """Return the reasons that were counted, in words: one reason, once, if nothing is off."""
    names = (layout().reasons[at].name for at in counted.nonzero()[0])
    times = counted[counted != 0].tolist()
    said = (f"{n}x {name}" if n != 1 else name for n, name in zip(times, names, strict=True))
    return " and ".join(said) or "no reason"


@contextmanager
def twin(plan: Plan, generation: Generation, code: Code) -> Iterator[Bench]:
    """Lend the program of a generation, on twins. Raises VerifierError, MapError."""
    with ExitStack() as undo:
        maps = dict(generation.maps)
        for spec in _twins(plan, generation):
            maps[spec.name] = undo.enter_context(BpfMap.create(spec))
        for ifindex in plan.interfaces.values():
            maps["devices"].write(ifindex, ifindex)
        program = load_programs(code, maps)
        undo.callback(os.close, program.fd)
        yield Bench(program.fd, _shared(maps["reasons"]), plan.interfaces.values())


def _shared(reasons: BpfMap) -> Values:
    """Return the memory of the twin of ``reasons`` itself: it is looked at after each packet."""
    return np.frombuffer(mmap(reasons.fd, len(layout().reasons) * 8), np.uint64)


def _twins(plan: Plan, generation: Generation) -> Iterator[MapSpec]:
    """Yield what the program writes, and its table of programs, small where sizes do not matter."""
    yield generation.maps["programs"].spec
    highest = max(plan.indices.values(), default=0)
    for spec in persistent_specs(_TWIN_ENTRIES, way_bits()):
        if spec.name == "reasons":
            yield replace(spec, kind=MapType.ARRAY, flags=MMAPABLE)
        elif spec.kind in _HASHES:
            yield replace(spec, max_entries=min(spec.max_entries, _TWIN_ENTRIES))
        elif spec.max_entries == INDICES:
            yield replace(spec, max_entries=highest + 1)
        else:
            yield spec
