"""A service's ring: which backend owns each slot. Weighted Maglev, and who stands in for the dead.

Owns the two pure steps from weights and liveness to slots: ``maglev`` builds the base ring of all
configured backends, ``hand_over`` lends the slots of those that are down to those that are up.
``schedule`` makes the other kind of ring, whose slots are taken in turn.
It refuses to know packets (``flow_hash`` picks the slot) and BPF (the datapath writes the map).

Every gateway with the same configuration must come to the same ring, and so must the next release:
only a backend's identity counts, hashed by BLAKE2b, never Python's salted ``hash()`` and never the
order of the file. ``tests/unit/test_ring.py`` pins a ring; changing it moves users' flows.

numpy is allowed here: 65,537 slots must be filled in milliseconds.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from itertools import chain
from math import gcd, isqrt
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from lb_xdp.core.compact import Compact, Places
from lb_xdp.core.model import BackendKey

RING_SLOTS = 65_537
"""Slots of a ring: a prime, as Maglev's permutations need, and the paper's own size."""

EMPTY = 0xFFFF_FFFF
"""Owner of a slot that no backend takes."""

MAX_WEIGHT = 2**31 - 1
"""Largest weight: rounds times weight must fit an int64."""

VERSION = 1
"""Of how rings are made: whoever changes what comes out counts it up."""

Owners = npt.NDArray[np.uint32]
_Ints = npt.NDArray[np.int64]
Turns = _Ints
"""The backend of each turn, by its number, in the order of the turns: as many as slots."""

_CHUNK = 64  # places computed at a time once a list is at its end
_SPARE = 4.0  # standard deviations by which a list is longer than likely needed
_SCORE_CELLS = 1 << 15  # scores computed at a time: 256 kB per array stay in the L2 cache


class Ring:
    """``owner[slot]`` is an index into ``keys``, or ``EMPTY``. It does not change, once built.

    ``keys`` are the backends of the base ring in ascending order, those without a slot included.
    In place of the owners there may be a function that makes the ring: it is called when somebody
    looks, which after a restart is rarely, since the kernel has the slots. ``cause`` is a digest of
    all that the ring follows from, where whoever made it says so.
    """

    __slots__ = ("_make", "_places", "cause", "keys")

    def __init__(
        self,
        keys: tuple[BackendKey, ...],
        owner: Owners | Callable[[], Ring],
        cause: bytes = b"",
    ) -> None:
        self.keys = keys
        self.cause = cause
        self._make: Callable[[], Ring] | None = owner if callable(owner) else None
        self._places = None if callable(owner) else _compressed(owner, len(keys))

    @property
    def places(self) -> Places:
        """The owners in as few bytes as they take; one more than the last key's is ``EMPTY``."""
        if self._places is None:
            made = self._make() if self._make else Ring((), np.zeros(0, np.uint32))
            self._places, self._make = made.places, None
        return self._places

    @property
    def owner(self) -> Owners:
        """The owners; of what is returned the caller may do what it likes."""
        return self.mean(range(len(self.keys)), EMPTY).numbers()

    def mean(self, meanings: Iterable[int], nobody: int) -> Compact:
        """Return for each slot what its owner means: ``meanings`` has a number for each key."""
        return Compact(np.array([*meanings, nobody], np.uint32), self.places)


def _compressed(owner: Owners, many: int) -> Places:
    """Return owners in as few bytes as they take, ``EMPTY`` as one more than the last."""
    places: Places = np.minimum(owner, many).astype(np.min_scalar_type(many))
    return places


@dataclass(frozen=True, slots=True)
class _Identity:
    """The three independent 64-bit hashes of a backend."""

    offset: int
    skip: int
    seed: int

    @classmethod
    def of(cls, key: BackendKey) -> _Identity:
        digest = blake2b(str(key).encode(), digest_size=24, person=b"lb-xdp ring").digest()
        parts = (digest[0:8], digest[8:16], digest[16:24])
        return cls(*(int.from_bytes(part, "little") for part in parts))


def maglev(
    weights: Mapping[BackendKey, int], slots: int = RING_SLOTS, how: Fill | None = None
) -> Ring:
    """Return the base ring: every slot owned, in proportion to the weights.

    Maglev (Eisenbud et al., NSDI 2016, section 3.4). Each backend prefers the slots in an order of
    its own, made from an offset and a skip. Backends take turns, and a turn takes the free slot
    that its backend prefers most. Weights change how often a turn comes: every round adds a
    backend's weight to its credit, and a credit of the largest weight buys one turn.

    One thing differs from the paper: the i-th preference is ``offset + skip * i ** 3``, not
    ``offset + i * skip``, mod slots. Without the cube, two backends whose skips have a small ratio
    walk in step, and a newcomer shifts their walks against each other: in one pool of three in
    1,500 that moved 4% of the slots beyond the newcomer's fair share. (Where 3 divides
    ``slots - 1`` a cube is no permutation; the next exponent that is stands in.)

    Backends of weight 0 are left out; with no other, all slots are ``EMPTY``. A share is exact to
    two slots in all that was measured; a weight below 1/``slots`` of the sum may get none.

    ``how`` takes the turns; ``fill`` does, unless something faster is at hand.

    Raises ``ValueError`` for weights outside 0 to ``MAX_WEIGHT`` and for ``slots`` not a prime.
    """
    if not _is_prime(slots):
        raise ValueError(f"a ring needs a prime number of slots, not {slots}")
    for key, weight in weights.items():
        if not 0 <= weight <= MAX_WEIGHT:
            raise ValueError(f"weight of {key} is {weight}, allowed is 0 to {MAX_WEIGHT}")
    keys = tuple(sorted(key for key in weights if weights[key]))
    if not keys:
        return Ring((), np.full(slots, EMPTY, np.uint32))
    turns = _turns(tuple(weights[key] for key in keys), slots)
    orders = Orders([_Identity.of(key) for key in keys], slots)
    return Ring(keys, (how or fill)(turns, orders))


def hand_over(ring: Ring, live: Collection[BackendKey], weights: Mapping[BackendKey, int]) -> Ring:
    """Return ``ring`` with the slots of backends that are not ``live`` lent to those that are.

    Weighted rendezvous hashing: backend and slot hash to ``u`` in (0, 1), and the slot goes to the
    highest ``-weight / ln(u)`` (Thaler and Ravishankar 1998; Schindelhauer and Schomaker 2005).
    Each choice looks at one slot alone, so a slot of a live backend never changes, a second death
    moves only the slots that it held, and a recovery takes back exactly what the backend lent.

    ``ring`` is the base ring. Only its backends with a positive weight can stand in; without one
    that is live, the slots become ``EMPTY``. Needs a few MB whatever the number of backends; time
    grows with dead slots times live backends (about 6 ns each).
    """
    up = frozenset(live)
    alive = np.array([*(key in up for key in ring.keys), False])  # the last stands for EMPTY
    if alive[:-1].all() and ring.keys:
        return ring  # which has no EMPTY slot then
    owner = ring.owner
    orphans = np.flatnonzero(~alive[np.minimum(owner, len(ring.keys))])
    able = [i for i, key in enumerate(ring.keys) if alive[i] and weights.get(key, 0) > 0]
    owner[orphans] = _rendezvous(orphans, ring.keys, able, weights) if able else EMPTY
    return Ring(ring.keys, owner)


def schedule(
    weights: Mapping[BackendKey, int], live: Collection[BackendKey], slots: int = RING_SLOTS
) -> Ring:
    """Return the ring of a service whose new flows take slot after slot: weighted round robin.

    Every live backend comes in proportion to its weight, never in bursts. The k-th turn of the j-th
    of n backends is due at ``(k + (j + 1/2) / n) / weight`` (stride scheduling, Waldspurger 1995,
    with evenly spread starts): equal weights give plain round robin, and many light backends come
    spread among the turns of a heavy one. A weight below 1/``slots`` of the sum may get no turn.
    """
    keys = tuple(sorted(key for key in weights if weights[key]))
    up = frozenset(live)
    able = np.array([i for i, key in enumerate(keys) if key in up], np.uint32)
    if not len(able):
        return Ring(keys, np.full(slots, EMPTY, np.uint32))
    shares = np.array([weights[keys[i]] for i in able.tolist()], np.float64)
    turns = np.ceil(shares * (slots / shares.sum())).astype(np.int64) + 1
    number = np.repeat(np.arange(len(able)), turns)
    nth = np.arange(len(number)) - np.repeat(np.cumsum(turns) - turns, turns)
    due = (nth + (number + 0.5) / len(able)) / shares[number]
    return Ring(keys, able[number[np.argsort(due, kind="stable")[:slots]]])


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, isqrt(number) + 1))


@lru_cache(maxsize=8)  # pools of equal weights are common, and sorting takes a few milliseconds
def _turns(shares: tuple[int, ...], slots: int) -> Turns:
    """Return the backend of each turn, in order, as the credits of ``maglev`` give them.

    After ``r`` rounds a backend has had ``r * weight // largest`` turns, so its k-th turn comes in
    round ``ceil(k * largest / weight)``; within a round, turns go by the order of the backends.
    """
    weights = np.array(shares, np.int64)
    largest = int(weights.max())
    rounds = _rounds(weights, slots)
    taken = rounds * weights // largest
    backend = np.repeat(np.arange(len(weights)), taken)
    nth = np.arange(1, len(backend) + 1) - np.repeat(np.cumsum(taken) - taken, taken)
    round_of = -(-nth * largest // weights[backend])
    turns: Turns = np.sort(round_of * len(weights) + backend)[:slots] % len(weights)
    turns.setflags(write=False)
    return turns


def _rounds(weights: _Ints, slots: int) -> int:
    """Return the fewest rounds that give ``slots`` turns; the largest weight has one in each."""
    largest = int(weights.max())
    low, high = 1, slots
    while low < high:
        middle = (low + high) // 2
        if int((middle * weights // largest).sum()) >= slots:
            high = middle
        else:
            low = middle + 1
    return low


class Orders:
    """The order in which each backend prefers the slots: ``offset + skip * i ** 3``.

    ``i`` is a place in the order, from 0. The methods work on whole arrays at once.
    """

    def __init__(self, identities: Sequence[_Identity], slots: int) -> None:
        self.slots = slots
        self.offsets: _Ints = np.array([one.offset % slots for one in identities], np.int64)
        self.skips: _Ints = np.array([one.skip % (slots - 1) + 1 for one in identities], np.int64)
        self.powers = _powers(slots)

    def slot_at(self, backends: _Ints | int, places: _Ints) -> _Ints:
        """Return the slot at each place, element by element."""
        return (self.offsets[backends] + self.skips[backends] * self.powers[places]) % self.slots

    def beyond(self, backend: int, place: int) -> Iterator[int]:
        """Yield the slots from ``place`` to the end of the order."""
        for start in range(place, self.slots, _CHUNK):
            places = np.arange(start, min(start + _CHUNK, self.slots))
            yield from self.slot_at(backend, places).tolist()

    def table(self, backends: _Ints, slots: _Ints) -> npt.NDArray[np.int32]:
        """Return the place of each slot (column) in the order of each backend (row)."""
        roots = np.empty(self.slots, np.int32)
        roots[self.powers] = np.arange(self.slots)
        table = np.empty((len(backends), len(slots)), np.int32)
        for row, backend in enumerate(backends.tolist()):
            inverse = pow(int(self.skips[backend]), -1, self.slots)
            table[row] = roots[(slots - self.offsets[backend]) * inverse % self.slots]
        return table


Fill: TypeAlias = Callable[[Turns, Orders], Owners]
"""From turns and orders to the owner of each slot."""


@lru_cache(maxsize=2)
def _powers(slots: int) -> _Ints:
    """Return the cube of each place, or the next power that is a permutation, mod ``slots``."""
    exponent = next(e for e in range(3, 2 * slots + 3, 2) if gcd(e, slots - 1) == 1)
    base = powers = np.arange(slots)
    for _ in range(exponent - 1):
        powers = powers * base % slots
    powers.setflags(write=False)
    return powers


def fill(turns: Turns, orders: Orders) -> Owners:
    """Take the turns one after the other, as fast as exactness allows.

    A turn that finds one slot in ``n`` free tries ``n`` on average, so the last ones cost most.
    Stages bring that down: each begins with lists of what is still free. The very last turns,
    whose lists would be long, are taken from a table of all that is left.

    ``places`` is how far each backend has come. Invariant: no slot before that place is free.
    """
    slots = orders.slots
    owner = np.full(slots, EMPTY, np.uint32)
    places = np.zeros(len(orders.skips), np.int64)
    done, last = 0, slots - slots // 100
    while done < last:
        free = slots - done
        stage = turns[done : min(done + free * 9 // 10 + 1, last)]
        ends = np.minimum(places + _reach(stage, len(places), free, slots), slots)
        lists = _Lists.of_free(owner, orders, places, ends)
        owner[_walk(stage, lists, orders, owner)] = stage
        own = np.flatnonzero(owner[lists.slots] == lists.backends)
        places[lists.backends[own]] = lists.places[own]  # of several, the last stays
        done += len(stage)
    free_slots = np.flatnonzero(owner == EMPTY)
    owner[_look_up(turns[last:], free_slots, orders)] = turns[last:]
    return owner


def _reach(stage: _Ints, backends: int, free: int, slots: int) -> _Ints:
    """Return how many places on each backend is likely to look during ``stage``.

    ``free`` slots before it become ``left``. A turn tries one listed slot at first and
    ``free / left`` at the end, on average as the logarithm says. Only an estimate, with some to
    spare: too short and too long cost time, no more.
    """
    turns = np.bincount(stage, minlength=backends)
    left = free - len(stage) + 1
    tries = np.log(free / left) * free / len(stage)
    wanted = turns * tries + _SPARE * np.sqrt(turns)
    reach: _Ints = np.ceil(wanted * slots / free).astype(np.int64)
    return reach


@dataclass(frozen=True, slots=True)
class _Lists:
    """The free slots of each backend's order up to some place, one list after the other."""

    slots: _Ints
    places: _Ints
    backends: _Ints
    ends: _Ints

    @classmethod
    def of_free(cls, owner: Owners, orders: Orders, places: _Ints, ends: _Ints) -> _Lists:
        """List what is free from ``places`` up to ``ends``."""
        lengths = ends - places
        backends = np.repeat(np.arange(len(places)), lengths)
        place = np.arange(len(backends)) + np.repeat(ends - np.cumsum(lengths), lengths)
        slot = orders.slot_at(backends, place)
        free = np.flatnonzero(owner[slot] == EMPTY)
        return cls(slot[free], place[free], backends[free], ends)

    def followed_by(self, orders: Orders) -> list[Iterator[int]]:
        """Return each backend's list, and after it what follows in its order, free or not.

        ``array`` halves the time of a ``list``, whose integers lie all over the memory.
        """
        listed = array("i", self.slots.astype(np.intc).tobytes())
        cuts = np.searchsorted(self.backends, np.arange(len(self.ends) + 1)).tolist()
        return [
            chain(listed[cuts[i] : cuts[i + 1]], orders.beyond(i, end))
            for i, end in enumerate(self.ends.tolist())
        ]


def _walk(stage: _Ints, lists: _Lists, orders: Orders, owner: Owners) -> list[int]:
    """Return the slot that each turn of ``stage`` takes.

    Plain Python on purpose, and the one hot loop: each turn depends on those before.
    """
    wishes = lists.followed_by(orders)
    taken = bytearray((owner != EMPTY).tobytes())
    found: list[int] = []
    for backend in stage.tolist():
        for slot in wishes[backend]:
            if not taken[slot]:
                taken[slot] = 1
                found.append(slot)
                break
    return found


def _look_up(turns: _Ints, free: _Ints, orders: Orders) -> _Ints:
    """Return the slot that each turn takes of those in ``free``.

    One row for each backend that still has a turn, one column for each free slot: a turn takes its
    row's minimum and strikes out the column.
    """
    backends, rows = np.unique(turns, return_inverse=True)
    table = orders.table(backends, free)
    columns = np.empty(len(turns), np.int64)
    for turn, row in enumerate(rows.tolist()):
        columns[turn] = column = table[row].argmin()
        table[:, column] = orders.slots
    found: _Ints = free[columns]
    return found


def _rendezvous(
    orphans: _Ints,
    keys: Sequence[BackendKey],
    able: Sequence[int],
    weights: Mapping[BackendKey, int],
) -> Owners:
    """Return the stand-in of each orphaned slot, as indices into ``keys``, block by block."""
    indices = np.array(able, np.uint32)
    seeds = np.array([_Identity.of(keys[index]).seed for index in able], np.uint64)
    shares = np.array([1.0 / weights[keys[index]] for index in able])
    rows = max(1, _SCORE_CELLS // len(able))
    chosen = np.empty(len(orphans), np.uint32)
    for start in range(0, len(orphans), rows):
        block = orphans[start : start + rows].astype(np.uint64)
        # -ln(u) / weight: its minimum is the maximum of -weight / ln(u), without a division by 0
        cost = np.log(_uniform(block, seeds))
        cost *= -shares
        chosen[start : start + rows] = indices[cost.argmin(axis=1)]
    return chosen


def _uniform(
    block: npt.NDArray[np.uint64], seeds: npt.NDArray[np.uint64]
) -> npt.NDArray[np.float64]:
    """Return a number in (0, 1) for each slot (row) and backend (column), neither end included.

    SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): the backend's seed, advanced ``slot`` steps.
    """
    mixed = block[:, np.newaxis] * np.uint64(0x9E37_79B9_7F4A_7C15) + seeds
    mixed ^= mixed >> np.uint64(30)
    mixed *= np.uint64(0xBF58_476D_1CE4_E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D0_49BB_1331_11EB)
    mixed ^= mixed >> np.uint64(31)
    mixed >>= np.uint64(12)
    return (mixed.astype(np.float64) + 0.5) * 2.0**-52
