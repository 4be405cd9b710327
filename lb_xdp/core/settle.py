"""A ring as the program sees it, and how its slots get from one backend to the next.

Owns the four states of a slot: which of them a change leads to, when a slot settles, and when its
mark goes; and how little memory a ring takes while all is settled. It refuses to know services and
backends: here they are indices, alive or not.

What a state says of the flows on the slot:
 - SETTLED: none has a record; all belong to the slot's backend;
 - UNSETTLED: a flow without a record is older than the change and belongs to the former backend;
   one that began since has a record;
 - SEVERED: the same, but that backend is down, and the service has such flows reset;
 - MARKED: records may exist and count; a flow without one belongs to the slot's backend.

Invariant: a flow whose backend stays live keeps it, whatever the ring does meanwhile, as long as it
is never silent for longer than the settle time. ``bpf/lb_flow.h`` is the other half of that.
numpy is allowed here: rings are arrays.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from lb_xdp.core.compact import Compact

Key = TypeVar("Key")

NO_BACKEND = 0
"""The index that stands for none in a ring; no backend ever has it."""

INDEX_BITS = 15
STATE_SHIFT = 2 * INDEX_BITS
SETTLED, UNSETTLED, MARKED, SEVERED = 0, 1, 2, 3
"""``LB_SLOT_*`` of ``bpf/lb_types.h``."""

Slots = npt.NDArray[np.uint32]
Live = npt.NDArray[np.bool_]

_NONE = np.uint32(NO_BACKEND)
_INDEX = np.uint32((1 << INDEX_BITS) - 1)
_SETTLED, _UNSETTLED, _MARKED = np.uint32(SETTLED), np.uint32(UNSETTLED), np.uint32(MARKED)
_SEVERED = np.uint32(SEVERED)


class RingImage(NamedTuple):
    """A ring in the kernel. Its slots are packed: backend's index, former one's, state.

    ``held`` are the slots, or where all are settled their compact form: mostly the owners of the
    ``Ring`` that they were made from, which is kept anyway.
    ``unsettled_until_ns`` is CLOCK_MONOTONIC, 0 where no slot is unsettled or severed.
    ``affinity_s`` is how long a client without flows is remembered.
    """

    held: Slots | Compact
    unsettled_until_ns: int = 0
    affinity_s: int = 0

    @property
    def slots(self) -> Slots:
        """Return the packed slots."""
        return self.held.numbers() if isinstance(self.held, Compact) else self.held

    @property
    def size(self) -> int:
        """Return how many slots there are."""
        return self.held.size

    @property
    def settled(self) -> bool:
        """Say whether all slots are settled; for most rings without a look at them."""
        return isinstance(self.held, Compact) or not (
            self.size and bool(self.held.max() >> STATE_SHIFT)
        )

    def slot(self, number: int) -> int:
        """Return one packed slot."""
        return self.held.at(number) if isinstance(self.held, Compact) else int(self.held[number])

    def same_as(self, other: RingImage | None) -> bool:
        """Say whether all of two rings is the same."""
        if other is None or self[1:] != other[1:]:
            return False
        if isinstance(self.held, Compact) and isinstance(other.held, Compact):
            return self.held.equals(other.held)
        return np.array_equal(self.slots, other.slots)


def compacted(slots: Slots) -> Slots | Compact:
    """Return slots in the form in which a ring holds them."""
    settled = len(slots) > 0 and not int(slots.max()) >> INDEX_BITS
    return Compact.of(slots) if settled else slots


def pack(current: Slots, former: Slots | np.uint32, state: Slots | np.uint32) -> Slots:
    """Return slots as the program sees them; a single number stands for all slots."""
    packed: Slots = current | former << np.uint32(INDEX_BITS) | state << np.uint32(STATE_SHIFT)
    return packed


def current_of(slots: Slots) -> Slots:
    """Return the index of the present backend of each slot."""
    return slots & _INDEX


def former_of(slots: Slots) -> Slots:
    """Return the index of the former backend of each slot."""
    return slots >> np.uint32(INDEX_BITS) & _INDEX


def state_of(slots: Slots) -> Slots:
    """Return the state of each slot."""
    return slots >> np.uint32(STATE_SHIFT)


def advance(
    before: RingImage | None,
    goal: Slots | Compact,
    live: Live,
    settle_ns: int,
    now_ns: int,
    *,
    known: Live | None = None,
) -> RingImage:
    """Return the ring whose slots belong to the ``goal``, given what it was.

    The goal's are indices, ``NO_BACKEND`` where nobody takes the slot. ``live`` says by index who
    may have packets and still is the backend that the index meant in ``before``. ``settle_ns`` 0:
    all slots are settled, as they are without a ``before``. The affinity is kept.

    A slot is unsettled as long as a live backend other than its present one owns the flows without
    a record. That is the former backend of an unsettled slot, else the present one before the
    change: a further change keeps the oldest, since what is unrecorded is older than all of them.
    A slot that was unsettled or marked is marked at least: its records still count.

    ``known`` is for services that have the flows of dead backends reset: there they stay those of
    their backend, and the slot is severed. It says by index which backends still are who they were,
    live or not; only those are kept as former ones, since they may come back.
    """
    if before is None or settle_ns == 0:
        return RingImage(goal, 0, before.affinity_s if before else 0)
    settled = before._replace(held=goal, unsettled_until_ns=0)
    wanted = settled.slots
    if np.array_equal(before.slots, wanted):  # settled before and after, as most rings are
        return settled
    before = expire(before, now_ns)
    current, former, state = _unpack(before.slots)
    if known is None:
        unrecorded = np.where((state == UNSETTLED) & live[former], former, current)
        severed = np.zeros(len(wanted), bool)
    else:
        unrecorded = np.where((state == UNSETTLED) | (state == SEVERED), former, current)
        severed = ~live[unrecorded] & ((unrecorded != NO_BACKEND) | (state == SEVERED))
    unsettled = live[unrecorded] & (unrecorded != wanted)
    after = np.where(state == SETTLED, _SETTLED, _MARKED)
    after = np.where(severed, _SEVERED, np.where(unsettled, _UNSETTLED, after))
    if not after.any():
        return settled
    kept = unsettled if known is None else unsettled | (severed & known[unrecorded])
    slots = pack(wanted, np.where(kept, unrecorded, _NONE), after)
    waits = unsettled | severed
    until_ns = before.unsettled_until_ns
    if bool((waits & (current != wanted)).any()):
        until_ns = now_ns + settle_ns
    return RingImage(slots, until_ns if bool(waits.any()) else 0, before.affinity_s)


def expire(image: RingImage, now_ns: int) -> RingImage:
    """Return the ring as it is once its time is up: what was unsettled or severed is marked."""
    if image.unsettled_until_ns == 0 or now_ns < image.unsettled_until_ns:
        return image
    current, _, state = _unpack(image.slots)
    after = np.where(state == SETTLED, _SETTLED, _MARKED)
    return image._replace(held=pack(current, _NONE, after), unsettled_until_ns=0)


def mark_all(image: RingImage) -> RingImage:
    """Return the ring with every slot marked: flows may have records, wherever they fall now."""
    marked = pack(current_of(image.slots), _NONE, _MARKED)
    return image._replace(held=marked, unsettled_until_ns=0)


def state_counts(image: RingImage) -> tuple[int, int]:
    """Return how many slots are unsettled (severed ones among them), and how many marked."""
    if image.settled:
        return 0, 0
    states = np.bincount(state_of(image.slots), minlength=SEVERED + 1)
    return int(states[UNSETTLED] + states[SEVERED]), int(states[MARKED])


def was_before(image: RingImage, index: int) -> bool:
    """Say whether flows without a record may belong to a backend: it is some slot's former one."""
    return image.unsettled_until_ns > 0 and bool(
        ((state_of(image.slots) == UNSETTLED) & (former_of(image.slots) == index)).any()
    )


def has_marked(image: RingImage) -> bool:
    """Say whether some slot is marked."""
    return not image.settled and bool((state_of(image.slots) == MARKED).any())


def unmark(image: RingImage, recorded: npt.NDArray[np.integer[Any]]) -> RingImage:
    """Return the ring with marks only on ``recorded``, the slots that flows with records fall on.

    Records must have been read after the slots were marked; then none can have been added since.
    Returns ``image`` itself if no mark goes.
    """
    free = state_of(image.slots) == MARKED
    free[recorded] = False
    if not free.any():
        return image
    return image._replace(held=np.where(free, current_of(image.slots), image.slots))


def unmarking(
    marked: Mapping[Key, RingImage],
    recorded: Mapping[Key, npt.NDArray[np.integer[Any]]],
    held: Mapping[Key, RingImage],
) -> dict[Key, npt.NDArray[np.integer[Any]]]:
    """Return of ``recorded`` what lets some mark go, now that the rings are those ``held``.

    ``marked`` are the rings before the records were read. One that has changed since keeps its
    marks, as does one that ``recorded`` says nothing of: records may have been added after they
    were read.
    """
    return {
        key: recorded[key]
        for key, image in marked.items()
        if held.get(key) is image and key in recorded and unmark(image, recorded[key]) is not image
    }


def _unpack(slots: Slots) -> tuple[Slots, Slots, Slots]:
    return current_of(slots), former_of(slots), state_of(slots)
