"""A cycle of the daemon: when one is due, what goes before and after it, and what if it fails.

Owns the retry, the wake-up for what is due by time alone, and the word to systemd's watchdog. It
refuses to know what a cycle decides: the reconciler does.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from lb_xdp.core.desired import Structure
from lb_xdp.core.model import Config
from lb_xdp.core.plan import Plan
from lb_xdp.errors import DatapathError, StoppedError
from lb_xdp.layers import Layers
from lb_xdp.probing import Probing
from lb_xdp.reconciler import Reconciler
from lb_xdp.reporter import Reporter
from lb_xdp.supervisor import Supervisor, watchdog_s
from lb_xdp.turns import Turns

_log = logging.getLogger(__name__)

_RETRY_S = 1.0  # how soon a failed cycle is tried again
_REST_S = 0.01  # between a cycle and one that is due by time alone
_LOOK_AT_EXPIRIES_S = 60.0  # how late an override ends at most when the time of day was set
_SIGNS_OF_LIFE = 4  # cycles that are asked for within the watchdog's time


class Cycles:
    """Made in the event loop that it works in.

    ``prepare`` makes the generation of a plan, and may take a second; ``compile_ahead`` does the
    slowest part of that without a plan. Both are called in threads.
    ``look`` takes in what netlink knows by now. ``on_gone`` is called when backends may have gone
    for good.
    """

    def __init__(
        self,
        reconciler: Reconciler,
        layers: Layers,
        probing: Probing,
        turns: Turns,
        reporter: Reporter,
        *,
        compile_ahead: Callable[[Structure], None],
        prepare: Callable[[Plan], None],
        look: Callable[[], None],
        on_gone: Callable[[], None],
    ) -> None:
        self._reconciler = reconciler
        self._layers = layers
        self._probing = probing
        self._turns = turns
        self._reporter = reporter
        self._compile_ahead = compile_ahead
        self._prepare = prepare
        self._look = look
        self._on_gone = on_gone
        self._worked_s = 0.0
        self._retry: asyncio.Handle = asyncio.get_running_loop().call_soon(turns.changed.set)
        self._settling = self._retry

    async def first(self, settle: Callable[[Config], Awaitable[object]]) -> None:
        """Compile while neighbours and first probes answer, then go to the goal.

        What forwards already goes on meanwhile: its backends are decided about by their records.
        """
        self._layers.expire()
        self._reconciler.let_go()
        config = self._reconciler.config
        await self._probing.carry(config)
        self._probing.probe(config)
        slow = asyncio.gather(self._begin(), settle(config))
        await self._turns.meanwhile(slow, self._look_meanwhile)
        self._look()
        if self._reconciler.observed.structure is None:
            plan, _ = self._reconciler.plan()
            built = asyncio.to_thread(self._prepare, plan)
            await self._turns.meanwhile(built, self._look_meanwhile)
            self._look()
        if self._turns.stopping:  # nothing is attached that nobody would look after
            raise StoppedError("the daemon was told to stop")
        self._reconciler.cycle()
        await self.keep_up()
        self._wake_in_time()

    def _begin(self) -> Awaitable[None]:
        """Begin in a thread with what takes long.

        Where nothing forwards yet that is the compiler's work alone: rings wait for the first
        results, since a trial of rings without backends would show little.
        """
        if self._reconciler.observed.structure is None:
            return asyncio.to_thread(self._compile_ahead, self._reconciler.structure())
        plan, _ = self._reconciler.plan()
        return asyncio.to_thread(self._prepare, plan)

    async def _build(self) -> None:
        """Go to a goal that takes another generation."""
        plan, _ = self._reconciler.plan()  # which may take the compiler a second:
        await asyncio.to_thread(self._prepare, plan)  # probes must not wait
        self._look()
        self._reconciler.cycle()

    async def _look_meanwhile(self) -> None:
        """Leave what changes to the first cycle, but for the ways of probes."""
        self._look()

    async def cycle(self) -> None:
        """Bring the datapath to the goal; a failure is told, and tried again."""
        self._look()
        self._layers.expire()
        if not self._probing.changing:  # a reload that is under way has its generation ready
            self._reconciler.let_go()
        try:
            if not self._reconciler.cycle_in_place():
                await self._build()
        except DatapathError as error:
            self._reporter.trouble = f"the datapath could not be updated, trying again: {error}"
            _log.error("cycle failed, trying again: %s", error)
            self._retry.cancel()
            self._retry = asyncio.get_running_loop().call_later(_RETRY_S, self._turns.changed.set)
        else:
            self._reporter.trouble = ""
            self._worked_s = asyncio.get_running_loop().time()
            await self.keep_up()
            self._wake_in_time()

    async def keep_up(self) -> None:
        """Let disk, probes and metrics follow when an override or a lingering backend has gone."""
        if self._layers.behind():
            self._on_gone()
            self._probing.again()
            await self._layers.keep_up()

    async def show_life(self, supervisor: Supervisor) -> None:
        """Tell systemd's watchdog that decisions are made, as long as they are.

        A cycle is asked for as anybody would, so what answers is the task that decides.
        """
        interval_s = watchdog_s()
        loop = asyncio.get_running_loop()
        while interval_s:
            asked_s = loop.time()
            self._turns.changed.set()
            await asyncio.sleep(interval_s / _SIGNS_OF_LIFE)
            if self._worked_s >= asked_s:
                supervisor.tell("WATCHDOG=1")

    def _wake_in_time(self) -> None:
        """Have a cycle when one is due though nothing happens."""
        loop = asyncio.get_running_loop()
        waits_s = []
        deadline_ns = self._reconciler.next_deadline_ns()
        if deadline_ns is not None:
            waits_s.append(deadline_ns / 1e9 - loop.time())
        expiry_s = self._reconciler.overrides.next_expiry_timestamp_s()
        if expiry_s is not None:
            waits_s.append(min(expiry_s - time.time(), _LOOK_AT_EXPIRIES_S))
        self._settling.cancel()
        if waits_s:
            self._settling = loop.call_later(max(min(waits_s), _REST_S), self._turns.changed.set)
