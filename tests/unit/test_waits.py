"""What probes wait by: many moments on one timer, many sockets on one epoll, and limits of time."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from lb_xdp.probes.waits import Limit, Waits
from tests.support import pace


@pytest.fixture
async def waits() -> AsyncIterator[Waits]:
    with Waits() as opened:
        yield opened


async def test_moments_come_in_their_order_and_never_early(waits: Waits) -> None:
    """Whatever the order in which they were asked for; what was forgotten never comes."""
    loop = asyncio.get_running_loop()
    began_s, came = loop.time(), list[tuple[float, float]]()
    all_came = asyncio.Event()

    def ask(after_s: float) -> None:
        waits.at(began_s + after_s, lambda: came.append((after_s, loop.time() - began_s)))

    wanted = [0.08, 0.02, 0.05, 0.021, -1.0, 0.0]
    for after_s in wanted:
        ask(after_s)
    unwanted = came.clear
    waits.forget(waits.at(began_s + 0.03, unwanted), unwanted)
    waits.at(began_s + 0.1, all_came.set)
    async with asyncio.timeout(pace.lasting(10)):
        await all_came.wait()
    assert [after_s for after_s, _ in came] == sorted(wanted)
    assert all(at_s >= after_s - 0.0001 for after_s, at_s in came)


async def test_a_moment_before_all_others_is_not_kept_waiting_by_them(waits: Waits) -> None:
    """The timer that was wound for a later one is wound again, also after that was forgotten."""
    now_s, soon = waits.now_s, asyncio.Event()
    waits.at(now_s + 3600, soon.clear)
    waits.forget(waits.at(now_s + 60, soon.clear), soon.clear)
    waits.at(now_s + 0.01, soon.set)
    async with asyncio.timeout(pace.lasting(10)):
        await soon.wait()


async def test_a_limit_ends_what_takes_longer(waits: Waits) -> None:
    """By TimeoutError, after which the task is as if nobody had cancelled it."""
    with pytest.raises(TimeoutError), Limit(waits, 0.01):
        await asyncio.Event().wait()
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    with Limit(waits, 0.01):
        pass
    await asyncio.sleep(0.03)


async def test_a_limit_lets_other_errors_through(waits: Waits) -> None:
    """Also one that the end of its time brought about, and it leaves no cancellation behind."""

    async def stumble() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise ConnectionError from None

    with pytest.raises(ConnectionError), Limit(waits, 0.01):
        await stumble()
    await asyncio.sleep(0)


async def test_a_cancellation_is_not_mistaken_for_the_end_of_a_limit(waits: Waits) -> None:
    """Not even where both come in the same turn of the loop."""

    async def last() -> None:
        with Limit(waits, 0.0):
            await asyncio.Event().wait()

    task = asyncio.get_running_loop().create_task(last())
    waits.at(waits.now_s, task.cancel)
    await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()


async def test_sockets_wake_whoever_waits_for_them(waits: Waits) -> None:
    """Each its own; one that was given up is forgotten, and its number can be used again."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        waiting = asyncio.create_task(waits.readable(ours.fileno()))
        await asyncio.sleep(0)
        waiting.cancel()
        with suppress(asyncio.CancelledError):
            await waiting
        again = asyncio.create_task(waits.readable(ours.fileno()))
        await waits.writable(theirs.fileno())
        assert not again.done()
        theirs.send(b"!")
        await again
        theirs.close()
        await waits.readable(ours.fileno())
