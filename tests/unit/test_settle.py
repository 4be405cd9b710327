"""Slots change hands without breaking a flow: the rules one by one, and against live flows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lb_xdp.core.settle import (
    MARKED,
    NO_BACKEND,
    SETTLED,
    SEVERED,
    UNSETTLED,
    Live,
    RingImage,
    advance,
    current_of,
    expire,
    former_of,
    has_marked,
    mark_all,
    pack,
    state_of,
    unmark,
)

A, B, C, NOBODY = 1, 2, 3, NO_BACKEND
SETTLE_NS, NOW_NS, UNTIL_NS = 900, 10_000, 10_500

Slot = tuple[int, int, int]


def live(*indices: int) -> Live:
    up = np.zeros(8, bool)
    up[list(indices)] = True
    return up


def image(*slots: Slot, until_ns: int = UNTIL_NS) -> RingImage:
    current, former, state = np.array(slots, np.uint32).T
    unsettled = any(slot[2] == UNSETTLED for slot in slots)
    return RingImage(pack(current, former, state), until_ns if unsettled else 0, 60)


def slots_of(ring: RingImage) -> list[Slot]:
    parts = (current_of(ring.slots), former_of(ring.slots), state_of(ring.slots))
    return list(zip(*(part.tolist() for part in parts), strict=True))


def array(*indices: int) -> np.ndarray[tuple[int], np.dtype[np.uint32]]:
    return np.array(indices, np.uint32)


CASES: dict[str, tuple[Slot, int, Iterable[int], Slot]] = {
    "unchanged, settled": ((A, 0, SETTLED), A, (A,), (A, 0, SETTLED)),
    "unchanged, marked": ((A, 0, MARKED), A, (A,), (A, 0, MARKED)),
    "unchanged, unsettled": ((B, A, UNSETTLED), B, (A, B), (B, A, UNSETTLED)),
    "unchanged, former one died": ((B, A, UNSETTLED), B, (B,), (B, 0, MARKED)),
    "between two live ones": ((A, 0, SETTLED), B, (A, B), (B, A, UNSETTLED)),
    "between two live ones, marked": ((A, 0, MARKED), B, (A, B), (B, A, UNSETTLED)),
    "again: the oldest stays": ((B, A, UNSETTLED), C, (A, B, C), (C, A, UNSETTLED)),
    "back to the former one": ((B, A, UNSETTLED), A, (A, B), (A, 0, MARKED)),
    "again, former one died": ((B, A, UNSETTLED), C, (B, C), (C, B, UNSETTLED)),
    "died": ((A, 0, SETTLED), B, (B,), (B, 0, SETTLED)),
    "died, marked": ((A, 0, MARKED), B, (B,), (B, 0, MARKED)),
    "died, unsettled": ((B, A, UNSETTLED), C, (A, C), (C, A, UNSETTLED)),
    "died, back to the former one": ((B, A, UNSETTLED), A, (A,), (A, 0, MARKED)),
    "both died": ((B, A, UNSETTLED), C, (C,), (C, 0, MARKED)),
    "the last one died": ((A, 0, SETTLED), NOBODY, (), (NOBODY, 0, SETTLED)),
    "the last one died, marked": ((A, 0, MARKED), NOBODY, (), (NOBODY, 0, MARKED)),
    "the last one takes no new flows": ((A, 0, SETTLED), NOBODY, (A,), (NOBODY, A, UNSETTLED)),
    "somebody at last": ((NOBODY, 0, SETTLED), A, (A,), (A, 0, SETTLED)),
    "somebody again, marked": ((NOBODY, 0, MARKED), A, (A,), (A, 0, MARKED)),
}


@pytest.mark.parametrize(("before", "wanted", "up", "after"), CASES.values(), ids=CASES.keys())
def test_a_slot_after_a_change(before: Slot, wanted: int, up: Iterable[int], after: Slot) -> None:
    """Each way that a slot can go, with the others of its ring left alone."""
    ring = advance(image(before, (A, 0, SETTLED)), array(wanted, A), live(*up, A) & live(*up),
                   SETTLE_NS, NOW_NS)  # fmt: skip
    assert slots_of(ring)[0] == after
    changed = before[0] != wanted
    until_ns = NOW_NS + SETTLE_NS if changed else UNTIL_NS
    assert ring.unsettled_until_ns == (until_ns if after[2] == UNSETTLED else 0)
    assert ring.affinity_s == 60


SEVERING: dict[str, tuple[Slot, int, Iterable[int], Slot]] = {
    "died": ((A, 0, SETTLED), B, (B,), (B, A, SEVERED)),
    "died, marked": ((A, 0, MARKED), B, (B,), (B, A, SEVERED)),
    "died, unsettled": ((B, A, UNSETTLED), C, (A, C), (C, A, UNSETTLED)),
    "former one died": ((B, A, UNSETTLED), B, (B,), (B, A, SEVERED)),
    "both died": ((B, A, UNSETTLED), C, (C,), (C, A, SEVERED)),
    "died, severed": ((B, A, SEVERED), C, (C,), (C, A, SEVERED)),
    "came back": ((B, A, SEVERED), A, (A, B), (A, 0, MARKED)),
    "came back, not here": ((B, A, SEVERED), B, (A, B), (B, A, UNSETTLED)),
    "unchanged": ((B, A, SEVERED), B, (B,), (B, A, SEVERED)),
    "the last one died": ((A, 0, SETTLED), NOBODY, (), (NOBODY, A, SEVERED)),
    "the last one came back": ((NOBODY, A, SEVERED), A, (A,), (A, 0, MARKED)),
    "between two live ones": ((A, 0, SETTLED), B, (A, B), (B, A, UNSETTLED)),
    "somebody at last": ((NOBODY, 0, SETTLED), A, (A,), (A, 0, SETTLED)),
    "gone for good": ((4, 0, SETTLED), B, (B,), (B, 0, SEVERED)),
    "gone for good since": ((B, 4, SEVERED), B, (B,), (B, 0, SEVERED)),
    "gone long ago": ((B, 0, SEVERED), NOBODY, (), (NOBODY, 0, SEVERED)),
}


@pytest.mark.parametrize(
    ("before", "wanted", "up", "after"), SEVERING.values(), ids=SEVERING.keys()
)
def test_a_slot_whose_flows_are_reset(
    before: Slot, wanted: int, up: Iterable[int], after: Slot
) -> None:
    """Where dead backends' flows are reset they stay theirs; of A to C all are still known."""
    known = live(A, B, C)
    ring = advance(
        image(before, (C, A, UNSETTLED)), array(wanted, C), live(*up, C) & live(*up),
        SETTLE_NS, NOW_NS, known=known,
    )  # fmt: skip
    assert slots_of(ring)[0] == after
    changed = before[0] != wanted and after[2] in {UNSETTLED, SEVERED}
    assert ring.unsettled_until_ns == (NOW_NS + SETTLE_NS if changed else UNTIL_NS)
    rehashed = advance(ring, array(wanted, C), live(*up), SETTLE_NS, NOW_NS)
    assert SEVERED not in {state for _, _, state in slots_of(rehashed)}
    marked = {(index, 0, MARKED) for index, _, state in slots_of(ring) if state != SETTLED}
    assert marked <= set(slots_of(expire(ring, NOW_NS + SETTLE_NS)))


def test_time_is_up_before_the_next_change() -> None:
    """Unsettled slots are marked when their time is over, and a change then starts from there."""
    before = image((B, A, UNSETTLED), (B, A, UNSETTLED), (A, 0, SETTLED))
    assert expire(before, UNTIL_NS - 1) is before
    assert slots_of(expire(before, UNTIL_NS)) == [(B, 0, MARKED), (B, 0, MARKED), (A, 0, SETTLED)]
    after = advance(before, array(C, B, A), live(A, B, C), SETTLE_NS, UNTIL_NS)
    assert slots_of(after) == [(C, B, UNSETTLED), (B, 0, MARKED), (A, 0, SETTLED)]


@pytest.mark.parametrize(
    ("before", "settle_ns"), [(None, SETTLE_NS), (image((B, A, UNSETTLED), (A, 0, MARKED)), 0)]
)
def test_without_a_past_or_records_all_is_settled(before: RingImage | None, settle_ns: int) -> None:
    """A new ring has no flows, and a service without records has nothing to settle."""
    after = advance(before, array(A, B), live(A, B), settle_ns, NOW_NS)
    assert slots_of(after) == [(A, 0, SETTLED), (B, 0, SETTLED)]
    assert after.unsettled_until_ns == 0


def test_marks_go_with_the_last_record() -> None:
    """Only marked slots without a record are unmarked; where none is, the ring is the same one."""
    before = image((A, 0, MARKED), (B, 0, MARKED), (B, A, UNSETTLED), (C, 0, SETTLED))
    after = unmark(before, np.array([1, 2]))
    assert slots_of(after) == [(A, 0, SETTLED), (B, 0, MARKED), (B, A, UNSETTLED), (C, 0, SETTLED)]
    assert unmark(after, np.array([1, 2])) is after
    assert (has_marked(before), has_marked(after)) == (True, True)
    assert not has_marked(unmark(after, np.empty(0, int)))


def test_marking_all_keeps_the_backends() -> None:
    """When flows fall on other slots than before, every slot is looked up, whoever has it."""
    after = mark_all(image((B, A, UNSETTLED), (NOBODY, 0, SETTLED), (C, 0, MARKED)))
    assert slots_of(after) == [(B, 0, MARKED), (NOBODY, 0, MARKED), (C, 0, MARKED)]
    assert after.unsettled_until_ns == 0


# Live flows on a ring that changes. Time goes in ticks.

SLOTS = 3
RESET = -1
SETTLE = 5
BACKENDS = range(1, 5)


@dataclass
class Flow:
    """An open flow. ``owner``: the backend that it lives on, None after that one died."""

    udp: bool
    owner: int | None = None
    silent: int = 0
    back: bool = False
    """Whether the backend that died has come back since: then it is for that to reset the flow."""


@dataclass
class World:
    """A gateway, scalar and slow: lb_unsettled_pick() of bpf/lb_flow.h, clients and time."""

    up: set[int] = field(default_factory=lambda: set(BACKENDS))
    now: int = 1
    wanted: list[int] = field(default_factory=lambda: [1] * SLOTS)
    flows: dict[int, Flow] = field(default_factory=dict)
    records: dict[int, int] = field(default_factory=dict)
    reset: bool = False

    def __post_init__(self) -> None:
        self.ring = advance(None, array(*self.wanted), live(*self.up), SETTLE, self.now)

    def pick(self, key: int, *, syn: bool) -> int:
        """Return the backend that a packet goes to, and record its flow as the program does.

        RESET: the flow is reset.
        """
        index, former, state = slots_of(self.ring)[key % SLOTS]
        if state == SETTLED:
            return index
        record = self.records.get(key)
        if record in self.up and not syn:
            return record
        if self.reset and record and not syn:
            return RESET
        if state == MARKED:
            self.records.pop(key, None)
            return index
        if former not in self.up:
            if state == SEVERED and not syn and record is None:
                return RESET
            former = index
        chosen = index if syn or record is not None else former
        if chosen:
            self.records[key] = chosen
        return chosen

    def send(self, key: int) -> None:
        """Send a packet of a flow, which may open it; it has to arrive where the flow lives."""
        flow = self.flows.get(key)
        opens = flow is None
        if flow is None:
            flow = self.flows[key] = Flow(udp=bool(key & 1))
        found = self.pick(key, syn=opens and (self.reset or not flow.udp))
        if self.reset and (found == RESET or (flow.owner is None and not opens)):
            assert not opens
            assert flow.owner is None
            assert found == RESET or flow.back
            del self.flows[key]
            return
        assert flow.owner in {None, found}
        flow.owner, flow.silent = found or None, 0
        if not found:
            del self.flows[key]

    def tick(self) -> None:
        """Let time pass: no open flow is silent for as long as slots take to settle."""
        self.now += 1
        for key, flow in list(self.flows.items()):
            flow.silent += 1
            if flow.silent >= SETTLE - 1:
                self.send(key)

    def cycle(self) -> None:
        """Bring the ring to what is wanted, as the controller does."""
        wanted = [index if index in self.up else NOBODY for index in self.wanted]
        known = live(*BACKENDS) if self.reset else None
        up = live(*self.up)
        self.ring = advance(self.ring, array(*wanted), up, SETTLE, self.now, known=known)

    def turn_over(self, backend: int) -> None:
        """Let a backend die, with its flows, or come back."""
        self.up ^= {backend}
        for flow in self.flows.values():
            if flow.owner is None and backend in self.up:
                flow.back = True
            if flow.owner == backend and backend not in self.up:
                flow.owner = None
        self.cycle()

    def collect(self) -> None:
        """Remove the records of flows that are over, and unmark slots without any."""
        self.records = {key: at for key, at in self.records.items() if key in self.flows}
        on = {key % SLOTS for key in self.records}
        self.ring = unmark(self.ring, np.array(sorted(on), np.intp))

    def check(self) -> None:
        """No slot that is settled has a record, and no unsettled one names a dead backend."""
        for slot, (_, former, state) in enumerate(slots_of(self.ring)):
            assert state != SETTLED or all(key % SLOTS != slot for key in self.records)
            assert (former in self.up) == (state == UNSETTLED)
            assert self.reset or state != SEVERED


keys = st.integers(0, 5)
steps = st.one_of(
    st.tuples(st.just("send"), keys),
    st.tuples(st.just("close"), keys),
    st.tuples(st.just("want"), st.integers(0, SLOTS - 1), st.sampled_from([0, *BACKENDS])),
    st.tuples(st.just("turn over"), st.sampled_from(BACKENDS)),
    st.tuples(st.just("tick"), st.integers(1, SETTLE)),
    st.tuples(st.just("collect")),
)


def carry_out(world: World, step: tuple[object, ...]) -> None:
    match step:
        case ("send", int(key)):
            world.send(key)
        case ("close", int(key)):
            world.flows.pop(key, None)
        case ("want", int(slot), int(backend)):
            world.wanted[slot] = backend
            world.cycle()
        case ("turn over", int(backend)):
            world.turn_over(backend)
        case ("tick", int(ticks)):
            for _ in range(ticks):
                world.tick()
                world.cycle()
        case ("collect",):
            world.collect()


# A change late in another slot's time: all of the ring waits for the later one.
_LATE = [("want", 0, 2), ("tick", 3), ("send", 4), ("want", 1, 2), ("tick", 5)]


@settings(max_examples=300)
@example(_LATE, False)  # noqa: FBT003 - hypothesis wants it so
@given(st.lists(steps, max_size=60), st.booleans())
def test_no_flow_to_a_live_backend_is_broken(
    actions: list[tuple[object, ...]],
    reset: bool,  # noqa: FBT001 - hypothesis passes it so
) -> None:
    """Whatever changes, dies and settles in between: a flow stays while its backend lives.

    And once all flows are over, every slot settles. With ``reset``, a flow whose backend died is
    reset by its next packet, unless that backend is back by then; no other flow ever is.
    """
    world = World(reset=reset)
    for step in actions:
        carry_out(world, step)
        world.check()
    for key in list(world.flows):
        world.send(key)
    world.flows.clear()
    for _ in range(SETTLE):
        world.tick()
    world.cycle()
    world.collect()
    assert not state_of(world.ring.slots).any()
    assert world.ring.unsettled_until_ns == 0
