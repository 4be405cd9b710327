"""Keeps a ``Topology`` true: reads it once, follows the kernel's notices, asks for missing MACs.

Owns the sockets, the tasks and the pace. What a notice means is in ``view.py``. Refuses to change
anything on the host, apart from making the kernel resolve the neighbours that are in use.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from lb_xdp.core.model import Address
from lb_xdp.core.topology import Topology
from lb_xdp.errors import InterfaceError, NetlinkError
from lb_xdp.netlink.messages import HopKey, Route
from lb_xdp.netlink.rtnetlink import EVENT_BUFFER_BYTES, Events, OverrunError, Questions
from lb_xdp.netlink.view import View

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Pace:
    """How often what is done, in seconds.

    ``gather_s``: notices that come within it cause one change. ``ask_again_s``: while a neighbour
    has no MAC. ``confirm_again_s``: while its entry is stale; it also bounds how long a silently
    changed MAC and a change that no notice tells of (a next-hop object, say) go unseen.
    ``after_overrun_s``: a storm's time to calm down before everything is read again.
    """

    gather_s: float = 0.005
    ask_again_s: float = 1.0
    confirm_again_s: float = 30.0
    after_overrun_s: float = 0.05


_DEFAULT_PACE: Final = Pace()


class Follower:
    """Follows interfaces by name and the next hops of a set of target addresses.

    ``on_change`` is called without arguments after ``topology`` has got another value; an exception
    from it ends the follower and comes out of the ``async with`` block, as do netlink errors.
    Use as an async context manager, in the network namespace that is meant.
    """

    def __init__(
        self,
        interfaces: Collection[str],
        on_change: Callable[[], None],
        *,
        pace: Pace = _DEFAULT_PACE,
        event_buffer_bytes: int = EVENT_BUFFER_BYTES,
    ) -> None:
        self._names = frozenset(interfaces)
        self._on_change = on_change
        self._pace = pace
        self._event_buffer_bytes = event_buffer_bytes
        self._questions = Questions()
        self._events = Events(event_buffer_bytes)
        self._view = View()
        self._topology = Topology()
        self._targets: frozenset[Address] = frozenset()
        self._dirty: set[Address] = set()
        self._lookup = asyncio.Lock()
        self._wake = asyncio.Event()
        self._news = asyncio.Event()
        self._asked_at_s: dict[HopKey, float] = {}
        self._complaint = ""
        self._group = asyncio.TaskGroup()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def topology(self) -> Topology:
        """What is known now; a new value replaces it, it is never changed in place."""
        return self._topology

    async def __aenter__(self) -> Self:
        """Read the host's state and start to follow it.

        Raises ``InterfaceError`` where an interface does not exist, ``NetlinkError`` where the
        kernel does not answer.
        """
        try:
            await self._subscribe()
            self._require_interfaces(self._names)
        except BaseException:
            self._close()
            raise
        self._topology = self._view.topology(self._names)
        await self._group.__aenter__()
        self._tasks = [
            self._group.create_task(self._listen(), name="netlink events"),
            self._group.create_task(self._work(), name="netlink routes and neighbours"),
        ]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop following; raises what ended a task, if anything did."""
        for task in self._tasks:
            task.cancel()
        try:
            # The group would wrap what the block raised; of that, it needs to see only the
            # cancellation by which it ends the block when a task of its own failed.
            if kind is not None and issubclass(kind, asyncio.CancelledError):
                await self._group.__aexit__(kind, error, trace)
            else:
                await self._group.__aexit__(None, None, None)
        finally:
            self._close()

    def _close(self) -> None:
        self._events.close()
        self._questions.close()

    async def set_targets(self, targets: Collection[Address]) -> None:
        """Follow these addresses from now on, and no others.

        On return ``topology`` has their routes, and those MACs that the kernel knew already; the
        others are asked for and come later (``settle`` waits for them).
        """
        self._targets = frozenset(targets)
        self._dirty |= self._targets - self._view.routes.keys()
        await self._look_up_dirty()
        self._publish()
        await self._ask_neighbours()

    def set_interfaces(self, names: Collection[str]) -> None:
        """Follow these interfaces from now on, and no others.

        Raises ``InterfaceError`` where one that was not followed before does not exist; then
        nothing has changed. One that went away meanwhile may come back.
        """
        self._require_interfaces(frozenset(names) - self._names)
        self._names = frozenset(names)
        self._publish()

    async def settle(self, timeout_s: float) -> frozenset[Address]:
        """Wait until every target has a MAC, at most ``timeout_s``; return those without one."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._topology.unresolved(self._targets):
                    await self._news.wait()
        return self._topology.unresolved(self._targets)

    async def _subscribe(self) -> None:
        """Ask for notices, then read everything, so that no change falls in between."""
        await self._events.subscribe()
        self._view.reload(await self._questions.read_all())
        self._dirty |= self._targets
        self._wake.set()

    async def _listen(self) -> None:
        while True:
            try:
                async for event in self._events:
                    self._dirty.update(self._view.apply(event))
                    if self._view.concerns(event):
                        self._wake.set()
            except OverrunError as error:
                _log.warning("netlink overrun, reading everything again error=%r", str(error))
            await asyncio.sleep(self._pace.after_overrun_s)
            self._events.close()
            self._events = Events(self._event_buffer_bytes)
            await self._subscribe()

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        all_again_at_s = loop.time() + self._pace.confirm_again_s
        while True:
            woken = await self._woken()
            if loop.time() >= all_again_at_s:
                self._dirty |= self._targets
                all_again_at_s = loop.time() + self._pace.confirm_again_s
            if woken or self._dirty:
                await asyncio.sleep(self._pace.gather_s)
                self._wake.clear()
                await self._look_up_dirty()
                self._publish()
            await self._ask_neighbours()

    async def _woken(self) -> bool:
        """Wait for a notice, or for the time to ask again; say whether it was a notice."""
        try:
            async with asyncio.timeout(self._pace.ask_again_s / 4):
                return await self._wake.wait()
        except TimeoutError:
            return False

    async def _look_up_dirty(self) -> None:
        # One at a time: two lookups of the same target must not overtake each other.
        async with self._lookup:
            dirty = self._dirty & self._targets
            self._dirty.clear()
            found: dict[Address, Route | None] = {}
            try:
                for target in dirty:
                    found[target] = await self._questions.find_route(target)
            except BaseException:
                self._dirty |= dirty
                raise
            routes = {**self._view.routes, **found}
            self._view.set_routes({t: r for t, r in routes.items() if t in self._targets})

    def _publish(self) -> None:
        topology = self._view.topology(self._names)
        if topology == self._topology:
            return
        self._topology = topology
        self._news.set()
        self._news = asyncio.Event()
        self._on_change()

    async def _ask_neighbours(self) -> None:
        now_s = asyncio.get_running_loop().time()
        hops = self._view.hops
        self._asked_at_s = {hop: at_s for hop, at_s in self._asked_at_s.items() if hop in hops}
        due = self._due(self._view.unanswered(), now_s - self._pace.ask_again_s)
        due += self._due(self._view.stale(), now_s - self._pace.confirm_again_s)
        complaint = ""
        for hop in due:
            self._asked_at_s[hop] = now_s
            try:
                await self._questions.use_neighbour(hop)
            except NetlinkError as error:
                # The interface just went away or down, or the neighbour table is full.
                complaint = str(error)
        if complaint and complaint != self._complaint:
            _log.warning("neighbour not asked error=%r", complaint)
        self._complaint = complaint if due else self._complaint

    def _due(self, hops: Iterable[HopKey], before_s: float) -> list[HopKey]:
        return [hop for hop in hops if self._asked_at_s.get(hop, before_s) <= before_s]

    def _require_interfaces(self, names: frozenset[str]) -> None:
        existing = sorted(link.name for link in self._view.links.values())
        missing = sorted(names.difference(existing))
        if missing:
            raise InterfaceError(
                f"no interface {', '.join(missing)} on this host; there are {', '.join(existing)}"
            )
