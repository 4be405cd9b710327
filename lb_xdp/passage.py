"""From one configuration to another: all that can be refused is tried before anything changes.

Owns the one way there: follow the network and probe the backends of both, compile and try the
program, and only then change, within one turn's last moment. Whoever goes this way without the last
step has changed nothing: that is what a plan does. It refuses to know where a configuration comes
from and who may ask for it (``changes``).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from typing import Protocol, TypeVar

from lb_xdp.config import MAX_SERVICE_BACKENDS
from lb_xdp.core.change import needs_restart
from lb_xdp.core.model import Address, Config, ServiceKey
from lb_xdp.core.names import total_backends
from lb_xdp.core.plan import Plan
from lb_xdp.core.targets import addresses
from lb_xdp.errors import HostError
from lb_xdp.probing import Probing
from lb_xdp.reconciler import Reconciler
from lb_xdp.turns import Turns

Result = TypeVar("Result")

_SETTLE_S = 1.5  # how long neighbours may take to answer


class FollowerPort(Protocol):
    """What is needed of netlink; see ``netlink.follow.Follower``."""

    def set_interfaces(self, names: Collection[str]) -> None: ...  # noqa: D102 - see Follower
    async def set_targets(self, targets: Collection[Address]) -> None: ...  # noqa: D102 - see Follower
    async def settle(self, timeout_s: float) -> object: ...  # noqa: D102 - see Follower


class WorkshopPort(Protocol):
    """What is needed of the datapath; see ``datapath.gateway.Datapath``."""

    def prepare(self, plan: Plan) -> None: ...  # noqa: D102 - see Datapath
    def discard(self) -> None: ...  # noqa: D102 - see Datapath


class Passage:
    """``config`` is the configuration in force, its names resolved.

    ``look`` takes in what netlink knows by now, ``cycle`` keeps the present goal while something
    lasts, ``require`` raises HostError about what this host would not let a configuration do.
    """

    def __init__(
        self,
        reconciler: Reconciler,
        follower: FollowerPort,
        datapath: WorkshopPort,
        probing: Probing,
        turns: Turns,
        *,
        look: Callable[[], None],
        cycle: Callable[[], Awaitable[object]],
        require: Callable[[Config], None],
    ) -> None:
        self.config = reconciler.config
        self._reconciler = reconciler
        self._follower = follower
        self._datapath = datapath
        self._probing = probing
        self._turns = turns
        self._look = look
        self._cycle = cycle
        self._require = require

    async def meanwhile(self, work: Awaitable[Result]) -> Result:
        """Wait for what something returns that takes long; failovers go on."""
        return await self._turns.meanwhile(work, self._cycle)

    async def settle(self, config: Config) -> None:
        """Wait, within bounds, until neighbours have answered and first probes have ended."""
        await self._follower.settle(_SETTLE_S)
        await self._probing.settle(config)

    @asynccontextmanager
    async def towards(self, config: Config) -> AsyncIterator[None]:
        """Within the context a configuration is tried out, and can be taken at once.

        Raises LbError where it is refused. At the end all is as the one in force wants it,
        whichever that is by then.
        """
        before = self.config
        self._refuse(before, config)
        try:
            await self._follow(before, config)
            self._reconciler.consider(config)
            await self._probing.carry(config, before)
            self._probing.probe(config, before)  # what serves already is judged by its own check
            await self.meanwhile(self._try_out(config))
            yield
        finally:
            if self._reconciler.config is not self.config:
                self._reconciler.adopt(self.config)
            self._reconciler.disregard()
            await asyncio.to_thread(self._datapath.discard)
            self._probing.probe(self.config)
            await self._probing.carry(self.config)
            await self._follow(self.config)

    def plan(self, config: Config) -> Plan:
        """Return the steps to a configuration that is being tried out, as things stand now."""
        self._look()
        return self._reconciler.plan(config)[0]

    def take(
        self, config: Config, allow: Callable[[Plan], None] | None = None
    ) -> Mapping[ServiceKey, int]:
        """Go to a configuration that is being tried out; returns how many slots moved by service.

        ``allow`` may raise when it does not like the plan; nothing happens between that and its
        being carried out. Raises DatapathError; then the one before is the goal again.
        """
        self._look()
        if allow is not None:
            allow(self._reconciler.plan(config)[0])
        self._reconciler.adopt(config)
        done = self._reconciler.cycle()
        self.config = config
        return done.moved if done else {}

    def _refuse(self, before: Config, config: Config) -> None:
        if (total := total_backends(config)) > MAX_SERVICE_BACKENDS:
            raise HostError(f"{total:,} backends, at most {MAX_SERVICE_BACKENDS:,} are allowed")
        obstacle = needs_restart(before.gateway, config.gateway)
        if obstacle:
            raise HostError(obstacle)
        self._require(config)

    async def _follow(self, *configs: Config) -> None:
        """Follow the interfaces and backends of these configurations. Raises InterfaceError."""
        self._follower.set_interfaces({name for c in configs for name in c.gateway.interfaces})
        wholes = [self._reconciler.whole_of(config) for config in configs]
        await self._follower.set_targets({address for c in wholes for address in addresses(c)})

    async def _try_out(self, config: Config) -> None:
        """Wait until what is new is decided about, and compile what will be needed."""
        await self.settle(config)
        self._look()
        plan, _ = self._reconciler.plan(config)
        await asyncio.to_thread(self._datapath.prepare, plan)
