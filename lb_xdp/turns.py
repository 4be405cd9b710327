"""One thing at a time: what wants to act waits for its turn in the daemon's one working task.

Probes, netlink and signals only leave word (``changed``, ``stop``, ``ask``); the API waits for the
outcome of what it asked for (``in_turn``). It knows nothing of what is done in a turn.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from lb_xdp.errors import LbError, StoppedError

Result = TypeVar("Result")
Action = Callable[[], Awaitable[object]]


_BREATH_S = 0.001
"""For an answer to go out before the next look, which with 10,000 backends takes long."""


class Turns:
    """Belongs to one event loop. ``changed`` is set whenever there is something to look at."""

    def __init__(self) -> None:
        self.changed = asyncio.Event()
        self._stopped = asyncio.Event()
        self._requests: list[Action] = []

    @property
    def stopping(self) -> bool:
        """Whether there will be no further turn."""
        return self._stopped.is_set()

    def stop(self) -> None:
        """Let the present turn be the last one."""
        self._stopped.set()
        self.changed.set()

    def ask(self, action: Action) -> None:
        """Have something done in its turn; it must not raise."""
        self._requests.append(action)
        self.changed.set()

    async def in_turn(
        self, action: Callable[[], Awaitable[Result]], *, complete: bool = False
    ) -> Result:
        """Have something done in its turn, and return what it returns. Raises its LbError.

        It returns after the look that follows, unless the action is ``complete`` by itself.
        """
        outcome: asyncio.Future[Result] = asyncio.get_running_loop().create_future()

        async def carry_out() -> None:
            try:
                result = await action()
            except LbError as error:
                if not outcome.done():  # whoever asked may have gone
                    outcome.set_exception(error)
            else:
                if not outcome.done():
                    outcome.set_result(result)
                if complete:
                    await asyncio.sleep(_BREATH_S)

        self.ask(carry_out)
        return await outcome

    async def work(self, look: Action) -> None:
        """Carry out requests, then ``look``, whenever something has changed, until stopped."""
        while not self.stopping:
            await self.changed.wait()
            self.changed.clear()
            while self._requests and not self.stopping:
                await self._requests.pop(0)()
            if not self.stopping:
                await look()

    async def meanwhile(self, work: Awaitable[Result], look: Action) -> Result:
        """Wait for a long piece of a turn, and go on to ``look`` at what changes while it lasts.

        Returns what ``work`` returns. Raises what ``work`` raises, and StoppedError when there is
        to be no further turn.
        """
        task = asyncio.ensure_future(work)
        try:
            while not task.done() and not self.stopping:
                changed = asyncio.create_task(self.changed.wait())
                await asyncio.wait({task, changed}, return_when=asyncio.FIRST_COMPLETED)
                changed.cancel()
                if self.changed.is_set() and not self.stopping:
                    self.changed.clear()
                    await look()
            if not task.done():
                raise StoppedError("the daemon was told to stop")
            return task.result()
        finally:
            task.cancel()
            self.changed.set()
