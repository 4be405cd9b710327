"""Repeats probes on schedule, each target for itself.

Owns when a probe starts. Refuses to know what results mean: rise and fall are
``lb_xdp.core.health``'s, and what follows is the reconciler's, which also says the pace.

Invariants: a target has at most one probe under way; a start is planned from the planned start
before it, so that slow answers do not shift the schedule; a result of a target that was removed or
replaced is never reported; targets that are set at once do not march in step.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from dataclasses import replace
from math import ceil
from random import Random
from types import TracebackType
from typing import Final, Generic, Self, TypeVar

from lb_xdp.core.endpoint import format_endpoint
from lb_xdp.core.health import ProbeResult, Target
from lb_xdp.core.model import CheckKind, HealthCheck
from lb_xdp.probes import dial
from lb_xdp.probes.attempt import Clock, attempt
from lb_xdp.probes.kinds import open_exchange
from lb_xdp.probes.tls import Contexts

TargetId = TypeVar("TargetId", bound=Hashable)

Pace = Callable[[TargetId, HealthCheck], float]
"""Seconds from one start to the next, before jitter; asked after each result."""

_CHEAP_S: Final = 0.0002
_COSTLY_S: Final = 0.002
_TICK_S: Final = 0.005


def _as_configured(_target_id: object, check: HealthCheck) -> float:
    return check.interval_s


class Prober(Generic[TargetId]):
    """Probes a set of targets until closed. Use as an async context manager.

    ``on_result`` is called in the event loop with every result; an exception from it is a mistake
    of the caller's, stops all probes and comes out of the ``async with`` block. ``pace`` says how
    soon a target is probed again, ``dial_of`` which way its probes go.
    """

    def __init__(
        self,
        on_result: Callable[[TargetId, ProbeResult], None],
        *,
        pace: Pace[TargetId] = _as_configured,
        dial_of: Callable[[TargetId], dial.Dial] = lambda _target: dial.Direct(),
        random: Random | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self._on_result = on_result
        self._pace = pace
        self._dial_of = dial_of
        self._random = random or Random()  # noqa: S311 - jitter, nothing to guess
        self._clock = clock
        self._group = asyncio.TaskGroup()
        self._targets: dict[TargetId, Target] = {}
        self._tasks: dict[TargetId, asyncio.Task[None]] = {}
        self._pauses: dict[TargetId, asyncio.Future[None]] = {}
        self._contexts = Contexts()
        self._all_begun_s = clock()

    @property
    def targets(self) -> Mapping[TargetId, Target]:
        """What is probed now."""
        return self._targets

    @property
    def begins_within_s(self) -> float:
        """Return in how many seconds the first probe of each target not known has started."""
        return max(self._all_begun_s - self._clock(), 0.0)

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Cancel all probes and wait for their end."""
        self._cancel(self._tasks.keys())
        # The group would wrap what the block raised; of that, it needs to see only the
        # cancellation by which it ends the block when a task of its own failed.
        if kind is not None and issubclass(kind, asyncio.CancelledError):
            await self._group.__aexit__(kind, error, trace)
        else:
            await self._group.__aexit__(None, None, None)

    async def aclose(self) -> None:
        """Cancel all probes and wait for their end, for callers that do not use ``async with``."""
        await self.__aexit__(None, None, None)

    def set_targets(
        self, targets: Mapping[TargetId, Target], known: Collection[TargetId] = ()
    ) -> None:
        """Probe exactly these from now on; only what differs is touched.

        Unchanged targets keep their schedule, new and changed ones are probed at once, one shortly
        after the other; nobody waits for those whose health is ``known``, as that of thousands is
        after a restart, so their first probes are spread over the interval. A target whose check is
        ``none`` is not probed.
        """
        wanted = {k: t for k, t in targets.items() if t.check.kind is not CheckKind.NONE}
        self._cancel({k for k, t in self._targets.items() if wanted.get(k) != t})
        self._targets = wanted
        new = [k for k in wanted if k not in self._tasks]
        self._begin([k for k in new if k not in known])
        self._begin([k for k in new if k in known], at_leisure=True)

    def probe_now(self, target_id: TargetId) -> None:
        """Start the next probe of a target now, unless one is under way; its schedule moves."""
        if (pause := self._pauses.get(target_id)) is not None:
            _end(pause)

    def _begin(self, target_ids: list[TargetId], *, at_leisure: bool = False) -> None:
        """Start to probe new targets, first probes in quick succession, then spread evenly."""
        now_s, delay_s, count = self._clock(), 0.0, len(target_ids)
        for number, target_id in enumerate(target_ids):
            target = self._targets[target_id]
            interval_s = target.check.interval_s
            even_s = interval_s * number / count
            first_s = now_s + (even_s if at_leisure else min(delay_s, even_s))
            second_s = now_s + interval_s * (0.5 + (number + 0.5) / count)
            self._tasks[target_id] = self._group.create_task(
                self._repeat(target_id, target, first_s, second_s),
                name=f"probe {format_endpoint(target.address, target.port)}",
            )
            delay_s += _cost_s(target.check)
            if not at_leisure:
                self._all_begun_s = max(self._all_begun_s, first_s)

    def _cancel(self, target_ids: Iterable[TargetId]) -> None:
        for target_id in tuple(target_ids):
            self._tasks.pop(target_id).cancel()

    async def _repeat(
        self, target_id: TargetId, target: Target, first_s: float, second_s: float
    ) -> None:
        check = target.check
        dial.use(self._dial_of(target_id))
        exchange = open_exchange(target, self._contexts)
        start_s, usual_s = first_s, second_s
        try:
            while True:
                await self._pause(target_id, start_s)
                start_s = min(start_s, self._clock())
                result = await attempt(check.timeout_s, self._clock, exchange)
                if not result.ok:
                    result = replace(result, detail=dial.explain(target.port, result.detail))
                self._on_result(target_id, result)
                pace_s = self._pace(target_id, check)
                if not usual_s or pace_s != check.interval_s:
                    usual_s = start_s + self._draw_interval_s(pace_s, check)
                # A probe that outlasted the interval delays the next start, it does not add one.
                start_s, usual_s = max(usual_s, self._clock()), 0.0
        finally:
            exchange.close()

    async def _pause(self, target_id: TargetId, until_s: float) -> None:
        """Wait for the time of the next start, or for somebody in a hurry."""
        loop = asyncio.get_running_loop()
        pause = self._pauses[target_id] = loop.create_future()
        # What is due within a tick is done in one turn of the loop, which costs as much as a probe.
        due_s = ceil((loop.time() + until_s - self._clock()) / _TICK_S) * _TICK_S
        timer = loop.call_at(due_s, _end, pause)
        try:
            await pause
        finally:
            timer.cancel()
            if self._pauses.get(target_id) is pause:  # a replaced target's task ends later
                del self._pauses[target_id]

    def _draw_interval_s(self, pace_s: float, check: HealthCheck) -> float:
        return pace_s * self._random.uniform(1 - check.jitter, 1 + check.jitter)


def _end(pause: asyncio.Future[None]) -> None:
    if not pause.done():
        pause.set_result(None)


def _cost_s(check: HealthCheck) -> float:
    """Return how much time to leave this process until it starts another first probe."""
    return _COSTLY_S if check.tls is not None or check.kind is CheckKind.EXEC else _CHEAP_S
