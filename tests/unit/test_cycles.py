"""The first cycle: what waits for the first results of probes, and what does not."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import AsyncMock, Mock

import pytest

from lb_xdp.core.model import Config
from lb_xdp.core.plan import Observed
from lb_xdp.cycles import Cycles
from lb_xdp.errors import StoppedError
from lb_xdp.reconciler import Reconciler
from lb_xdp.turns import Turns
from tests.unit.test_reconciler import TOPOLOGY, Memory, config


class Start:
    """A daemon's start, told step by step; ``settle`` ends when what is slow has begun.

    It is told to stop at the step ``stopped_at``.
    """

    def __init__(self, observed: Observed, wanted: Config, stopped_at: str = "") -> None:
        self.steps: list[str] = []
        self._stopped_at = stopped_at
        self.reconciler = Reconciler(wanted, Memory(), observed, 1, lambda: 100.0)
        self.reconciler.topology = TOPOLOGY

    async def run(self) -> None:
        loop, begun, turns = asyncio.get_running_loop(), asyncio.Event(), Turns()

        def said(step: str) -> None:
            self.steps.append(step)
            if step == self._stopped_at:
                loop.call_soon_threadsafe(turns.stop)
            loop.call_soon_threadsafe(begun.set)

        async def settle(_: Config) -> None:
            await begun.wait()
            self.steps.append("settled")

        nothing = cast("Any", SimpleNamespace(expire=Mock(), behind=Mock(return_value=False)))
        cycles = Cycles(
            self.reconciler,
            nothing,
            cast("Any", SimpleNamespace(carry=AsyncMock(), probe=Mock())),
            turns,
            nothing,
            compile_ahead=lambda _: said("compiled"),
            prepare=lambda plan: said(f"prepared {plan.generation}"),
            look=Mock(),
            on_gone=Mock(),
        )
        await cycles.first(settle)


def test_a_first_start_tries_the_rings_that_first_results_made() -> None:
    """The compiler alone goes ahead of them; the generation is made, and tried, afterwards."""
    start = Start(Observed(), config(1, 1))
    asyncio.run(start.run())
    assert start.steps == ["compiled", "settled", "prepared 1"]
    assert start.reconciler.observed.generation == 1


def test_a_stop_while_the_first_generation_is_made_attaches_nothing() -> None:
    """Whoever is told to stop before it is ready leaves nothing behind."""
    start = Start(Observed(), config(1, 1), stopped_at="prepared 1")
    with pytest.raises(StoppedError):
        asyncio.run(start.run())
    assert start.reconciler.observed.generation == 0


def test_another_generation_is_made_while_the_present_one_forwards() -> None:
    """A start that finds one knows of its backends from the maps, so all is made meanwhile."""
    former = Reconciler(config(1), Memory(), Observed(), 1, lambda: 100.0)
    former.topology = TOPOLOGY
    former.cycle()
    start = Start(former.observed, config(1, 1))
    asyncio.run(start.run())
    assert start.steps == ["prepared 2", "settled"]
    assert start.reconciler.observed.generation == 2
