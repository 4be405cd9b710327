"""What all probes of one prober wait for: sockets, and moments.

Owns one epoll and one timer, whatever the number of probes. The event loop's own ways are made for
connections that live long: ``add_reader``, ``call_at`` and ``asyncio.timeout`` cost as much as the
rest of a probe, if it is one of a thousand each second. It refuses to know what is waited for.

Moments are rounded up to the next step of the clock: what is due within one is done in one turn of
the loop.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable
from contextvars import ContextVar
from heapq import heappop, heappush
from math import ceil, inf
from types import TracebackType
from typing import Final, Self

_STEP_S: Final = 0.001
_EARLY_STEPS: Final = 0.001  # timers may be early by their clock's resolution, sums by a rounding
_NEVER: Final = inf
_EVENTS: Final = 1024  # at most, in a turn of the loop

Step = int
"""A moment by the loop's clock, in steps."""

Action = Callable[[], object]


class Waits:
    """Of the running event loop. Use as a context manager."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._epoll = select.epoll()
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._due: dict[Step, set[Action]] = {}
        self._order: list[Step] = []  # a heap of what ``_due`` has
        self._timer: asyncio.TimerHandle | None = None
        self._next: float = _NEVER  # the step at which it strikes

    def __enter__(self) -> Self:
        self._loop.add_reader(self._epoll.fileno(), self._look)
        return self

    def __exit__(self, *_error: object) -> None:
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()
        if self._timer is not None:
            self._timer.cancel()

    # Sockets.

    async def readable(self, descriptor: int) -> None:
        """Wait until there is something to read, the end and an error included."""
        await self._until(descriptor, select.EPOLLIN)

    async def writable(self, descriptor: int) -> None:
        """Wait until a socket takes more, or until it is connected or never will be."""
        await self._until(descriptor, select.EPOLLOUT)

    async def _until(self, descriptor: int, events: int) -> None:
        waiting = self._waiting[descriptor] = self._loop.create_future()
        self._epoll.register(descriptor, events)
        try:
            await waiting
        finally:
            # Before the socket is closed: a child that is being started may still hold it open.
            self._epoll.unregister(descriptor)
            del self._waiting[descriptor]

    def _look(self) -> None:
        for descriptor, _events in self._epoll.poll(0, _EVENTS):
            end(self._waiting[descriptor])

    # Moments.

    @property
    def now_s(self) -> float:
        """The time of the loop's clock."""
        return self._loop.time()

    def at(self, when_s: float, action: Action) -> Step:
        """Do something at a time of the loop's clock; ``forget`` it by what is returned."""
        step = ceil(when_s / _STEP_S - _EARLY_STEPS)
        actions = self._due.get(step)
        if actions is None:
            actions = self._due[step] = set()
            heappush(self._order, step)
        actions.add(action)
        if step < self._next:
            self._wind()
        return step

    def forget(self, step: Step, action: Action) -> None:
        """Do not do it, if it is not done yet."""
        if (actions := self._due.get(step)) is not None:
            actions.discard(action)

    def _strike(self) -> None:
        """Do what is due."""
        now = self._loop.time() / _STEP_S + _EARLY_STEPS
        try:
            while self._order and self._order[0] <= now:
                for action in self._due.pop(heappop(self._order)):
                    action()
        finally:  # or one that raises would end everybody's waiting
            self._wind()

    def _wind(self) -> None:
        """Have the timer strike at the next step that anything is left to do at."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._order and not self._due[self._order[0]]:
            del self._due[heappop(self._order)]
        self._next = _NEVER
        if self._order:
            self._next = self._order[0]
            self._timer = self._loop.call_at(self._next * _STEP_S, self._strike)


class Limit:
    """``asyncio.timeout``, to the next step: TimeoutError where the block takes this long."""

    __slots__ = ("_before", "_lasts_s", "_over", "_step", "_task", "_waits")

    def __init__(self, waits: Waits, lasts_s: float) -> None:
        self._waits, self._lasts_s, self._over = waits, lasts_s, False

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - coroutines of probes run in tasks
        self._task, self._before = task, task.cancelling()
        self._step = self._waits.at(self._waits.now_s + self._lasts_s, self._end)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self._waits.forget(self._step, self._end)
        # Somebody else may have cancelled the task as well: then it is cancelled.
        if self._over and self._task.uncancel() <= self._before and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def _end(self) -> None:
        self._over = True
        self._task.cancel()


def end(waiting: asyncio.Future[None]) -> None:
    """End a wait, unless it has ended."""
    if not waiting.done():
        waiting.set_result(None)


_waits: Final[ContextVar[Waits]] = ContextVar("waits")


def use(waits: Waits) -> None:
    """Have all probes of the present task, and of tasks that it starts, wait here."""
    _waits.set(waits)


def here() -> Waits:
    """Return where probes of the present task wait. Raises LookupError without ``use``."""
    return _waits.get()
