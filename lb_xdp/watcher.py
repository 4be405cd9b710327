"""Looks at the handshakes of watched services each second, and has done what follows from them.

Owns when readings are taken, and who is told: the prober of suspicions, the reconciler of
ejections, the journal of both. It refuses to judge (``core.outlier``), and to read anything where
no pool asks for it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

from lb_xdp.core.desired import BackendId
from lb_xdp.core.event import Event, EventKind
from lb_xdp.core.model import Config, Detect
from lb_xdp.core.outlier import Change, Finding, Member, Reading, judge
from lb_xdp.core.report import Watched
from lb_xdp.core.targets import TargetId
from lb_xdp.errors import DatapathError
from lb_xdp.reconciler import Reconciler
from lb_xdp.witness import Record

_log = logging.getLogger(__name__)

INTERVAL_S = 1.0

_KINDS = {
    Change.SUSPECTED: EventKind.SUSPECTED,
    Change.EJECTED: EventKind.EJECTED,
    Change.RETURNED: EventKind.RETURNED,
}


class HandshakesPort(Protocol):
    """What the watcher needs of the datapath."""

    def watch_counts(  # noqa: D102 - see Datapath
        self, indices: Mapping[BackendId, int]
    ) -> Mapping[BackendId, Watched]: ...


class _Pool(NamedTuple):
    """A watched pool: its rules, and under which identities its backends are counted."""

    rules: Detect
    backends: Mapping[TargetId, tuple[BackendId, ...]]


class Watcher:
    """Runs as a task of the daemon's.

    ``probe_now`` is called for every backend under suspicion, ``changed`` when somebody is ejected
    or returns, ``record`` with every event.
    """

    def __init__(
        self,
        reconciler: Reconciler,
        datapath: HandshakesPort,
        *,
        probe_now: Callable[[TargetId], None],
        changed: Callable[[], None],
        record: Record,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._reconciler = reconciler
        self._datapath = datapath
        self._probe_now = probe_now
        self._changed = changed
        self._record = record
        self._clock = clock
        self._members: dict[str, Mapping[TargetId, Member]] = {}

    async def work(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            try:
                await self.look()
            except DatapathError as error:
                _log.warning("handshakes could not be read: %s", error)
            await asyncio.sleep(INTERVAL_S)

    async def look(self) -> None:
        """Look once. Raises DatapathError.

        Between two pools others have their turn: of thousands of backends all may be watched.
        """
        pools = _pools(self._reconciler.config)
        if not pools and not self._members:
            return
        counts = self._datapath.watch_counts(self._reconciler.observed.indices) if pools else {}
        serving = self._reconciler.serving()
        before, self._members = self._members, {}
        for name, pool in pools.items():
            self._members[name] = self._judge(before.get(name, {}), pool, counts, serving)
            await asyncio.sleep(0)
        ejected = {
            target: one.ejected
            for members in self._members.values()
            for target, one in members.items()
            if one.ejected
        }
        if self._reconciler.eject(ejected):
            self._changed()

    def _judge(
        self,
        before: Mapping[TargetId, Member],
        pool: _Pool,
        counts: Mapping[BackendId, Watched],
        serving: frozenset[TargetId],
    ) -> Mapping[TargetId, Member]:
        readings = {target: _reading(ids, counts) for target, ids in pool.backends.items()}
        mine = serving & readings.keys()
        after = judge(before, readings, mine, pool.rules, self._clock())
        for finding in after.findings:
            self._tell(finding)
        for target, one in after.members.items():
            if one.suspected:
                self._probe_now(target)
        return after.members

    def _tell(self, finding: Finding[TargetId]) -> None:
        kind = _KINDS.get(finding.change)
        if kind is None:
            return
        for service, backend in self._reconciler.members(finding.key):
            self._record(Event(kind, time.time(), service, backend, cause=finding.why))


def _reading(identities: tuple[BackendId, ...], counts: Mapping[BackendId, Watched]) -> Reading:
    """Return what was seen of a backend in all services that are watched."""
    seen = [counts[identity] for identity in identities if identity in counts]
    return Reading(
        sum(one.begun for one in seen),
        sum(one.answered for one in seen),
        sum(one.repeated for one in seen),
        sum(one.resets for one in seen),
    )


def _pools(config: Config) -> dict[str, _Pool]:
    """Return the pools whose handshakes are watched, for some service at least."""
    rules: dict[str, Detect] = {}
    found: dict[str, dict[TargetId, tuple[BackendId, ...]]] = {}
    for service in config.services:
        if service.watched is None:
            continue
        name = service.pool.name
        rules[name] = service.watched
        backends = found.setdefault(name, {})
        for backend in service.pool.backends:
            target = TargetId(name, backend.key)
            identity = BackendId(service.key, backend.key)
            backends[target] = (*backends.get(target, ()), identity)
    return {name: _Pool(rules[name], backends) for name, backends in found.items()}
