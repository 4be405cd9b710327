"""One probe, as the prober would make it, and what many of them say."""

from __future__ import annotations

import asyncio
import time
from ipaddress import IPv4Address

from lb_xdp.core.health import NO_NAMES, Names, ProbeResult, Target
from lb_xdp.core.model import Address, HealthCheck
from lb_xdp.probes.attempt import attempt
from lb_xdp.probes.kinds import open_exchange
from lb_xdp.probes.tls import Contexts
from lb_xdp.probes.waits import Waits, use
from tests.support import pace

HERE = IPv4Address("127.0.0.1")


async def probe(
    check: HealthCheck, port: int, address: Address = HERE, names: Names = NO_NAMES
) -> ProbeResult:
    """Probe once, and keep nothing."""
    exchange = open_exchange(Target(check, address, port, names), Contexts())
    try:
        with Waits() as waits:
            use(waits)
            return await attempt(check.timeout_s, time.monotonic, exchange)
    finally:
        exchange.close()


class Latest:
    """The latest result of every target, and a way to wait for one that fits."""

    def __init__(self) -> None:
        self.results: dict[str, ProbeResult] = {}
        self._news = asyncio.Event()

    def __call__(self, target_id: str, result: ProbeResult) -> None:
        self.results[target_id] = result
        self._news.set()

    async def until(self, **details: str) -> None:
        """Wait until the targets' latest details are these; say what they are if they never are."""
        try:
            async with asyncio.timeout(pace.lasting(10)):
                while any(self.detail(name) != detail for name, detail in details.items()):
                    await self.news()
        except TimeoutError:
            found = {
                name: self.detail(name) for name in details if self.detail(name) != details[name]
            }
            raise AssertionError(f"{found}, not {details}") from None

    async def news(self) -> None:
        """Wait for the next result of anybody."""
        self._news.clear()
        await self._news.wait()

    def detail(self, name: str) -> str:
        """Return the latest detail of a target; empty before the first."""
        return self.results[name].detail if name in self.results else ""
