"""Repeats probes on schedule, each target for itself.

Owns when a probe starts. Refuses to know what results mean: rise and fall are
``lb_xdp.core.health``'s, and what follows is the reconciler's.

Invariants: a target has at most one probe under way; a start is planned from the planned start
before it, so that slow answers do not shift the schedule; a result of a target that was removed or
replaced is never reported.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Hashable, Iterable, Mapping
from contextlib import AsyncExitStack
from functools import partial
from random import Random
from types import TracebackType
from typing import Generic, Self, TypeVar

from lb_xdp.core.health import ProbeResult, Target
from lb_xdp.core.model import Address, CheckKind, HealthCheck, format_endpoint
from lb_xdp.probes.attempt import Clock
from lb_xdp.probes.http import make_session, probe_http
from lb_xdp.probes.tcp import probe_tcp

TargetId = TypeVar("TargetId", bound=Hashable)

Probe = Callable[[HealthCheck, Address, int, Clock], Awaitable[ProbeResult]]
"""One attempt. It keeps to the check's timeout and raises nothing for reasons of the network."""


class Prober(Generic[TargetId]):
    """Probes a set of targets until closed. Use as an async context manager.

    ``on_result`` is called in the event loop with every result; an exception from it is a mistake
    of the caller's, stops all probes and comes out of the ``async with`` block.
    """

    def __init__(
        self,
        on_result: Callable[[TargetId, ProbeResult], None],
        *,
        random: Random | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self._on_result = on_result
        self._random = random or Random()  # noqa: S311 - jitter, nothing to guess
        self._clock = clock
        self._group = asyncio.TaskGroup()
        self._targets: dict[TargetId, Target] = {}
        self._tasks: dict[TargetId, asyncio.Task[None]] = {}
        self._now: dict[TargetId, asyncio.Event] = {}
        self._probes: dict[CheckKind, Probe] = {CheckKind.TCP: probe_tcp}
        self._stack = AsyncExitStack()

    @property
    def targets(self) -> Mapping[TargetId, Target]:
        """What is probed now."""
        return self._targets

    async def __aenter__(self) -> Self:
        session = await self._stack.enter_async_context(make_session())
        self._probes[CheckKind.HTTP] = partial(probe_http, session=session)
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
        try:
            # The group would wrap what the block raised; of that, it needs to see only the
            # cancellation by which it ends the block when a task of its own failed.
            if kind is not None and issubclass(kind, asyncio.CancelledError):
                await self._group.__aexit__(kind, error, trace)
            else:
                await self._group.__aexit__(None, None, None)
        finally:
            await self._stack.aclose()

    async def aclose(self) -> None:
        """Cancel all probes and wait for their end, for callers that do not use ``async with``."""
        await self.__aexit__(None, None, None)

    def set_targets(self, targets: Mapping[TargetId, Target]) -> None:
        """Probe exactly these from now on; only what differs is touched.

        Unchanged targets keep their schedule, new and changed ones are probed at once. A target
        whose check is ``none`` is not probed.
        """
        wanted = {k: t for k, t in targets.items() if t.check.kind is not CheckKind.NONE}
        self._cancel({k for k, t in self._targets.items() if wanted.get(k) != t})
        for target_id, target in wanted.items():
            if target_id not in self._tasks:
                place = format_endpoint(target.address, target.port)
                self._tasks[target_id] = self._group.create_task(
                    self._repeat(target_id, target), name=f"probe {place}"
                )
        self._targets = wanted

    def probe_now(self, target_id: TargetId) -> None:
        """Start the next probe of a target now, unless one is under way; its schedule moves."""
        if (waiting := self._now.get(target_id)) is not None:
            waiting.set()

    def _cancel(self, target_ids: Iterable[TargetId]) -> None:
        for target_id in tuple(target_ids):
            self._tasks.pop(target_id).cancel()

    async def _repeat(self, target_id: TargetId, target: Target) -> None:
        check = target.check
        probe = self._probes[check.kind]
        start_s = self._clock()
        while True:
            self._on_result(target_id, await probe(check, target.address, target.port, self._clock))
            # A probe that outlasted the interval delays the next start, it does not add one.
            start_s = max(start_s + self._draw_interval_s(check), self._clock())
            if await self._told_before(target_id, start_s):
                start_s = self._clock()

    async def _told_before(self, target_id: TargetId, start_s: float) -> bool:
        """Wait for a time; True if ``probe_now`` ended that."""
        told = self._now[target_id] = asyncio.Event()
        try:
            async with asyncio.timeout(max(start_s - self._clock(), 0)):
                await told.wait()
        except TimeoutError:
            return False
        finally:
            if self._now.get(target_id) is told:
                del self._now[target_id]
        return True

    def _draw_interval_s(self, check: HealthCheck) -> float:
        return check.interval_s * self._random.uniform(1 - check.jitter, 1 + check.jitter)
