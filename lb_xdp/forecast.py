"""What a configuration would change: the way of a reload to its last step, and back.

So what a reload would refuse is refused here too, by the same words: the program is compiled and
tried, new backends are probed, interfaces looked for. Nothing is left of it. It refuses to count
slots and flows (``core.preview``).
"""

from __future__ import annotations

import asyncio

from lb_xdp.changes import Changes
from lb_xdp.config.difference import gateway_differences, service_differences
from lb_xdp.core.change import needs_restart, shared
from lb_xdp.core.model import Config
from lb_xdp.core.plan import Observed, Plan
from lb_xdp.core.preview import (
    Preview,
    ServiceChange,
    largest_share,
    new_and_not_up,
    service_previews,
)
from lb_xdp.core.touched import Evidence
from lb_xdp.errors import InvalidConfigError, LbError, StoppedError
from lb_xdp.ledger import Ledger
from lb_xdp.live_flows import LiveFlows
from lb_xdp.naming import Naming
from lb_xdp.passage import Passage
from lb_xdp.reconciler import Reconciler


class Forecast:
    """Its one method is to be called in a turn of the daemon's working task.

    ``layout`` is that of the maps.
    """

    def __init__(
        self,
        reconciler: Reconciler,
        ledger: Ledger,
        changes: Changes,
        naming: Naming,
        *,
        passage: Passage,
        flows: LiveFlows,
        layout: int,
    ) -> None:
        self._reconciler = reconciler
        self._ledger = ledger
        self._changes = changes
        self._naming = naming
        self._passage = passage
        self._flows = flows
        self._layout = layout

    async def plan(self, text: str | None, source: str, revision: str) -> Preview:
        """Return what a configuration would change; None stands for the daemon's own file.

        Raises InvalidConfigError. Whatever else refuses it, the answer says.
        """
        to, _ = await self._changes.read(text, source)
        present = self._ledger.present.config
        with self._naming.trying(to.config, present):
            try:
                await self._passage.meanwhile(self._naming.ask(present, to.config))
                config = shared(self._passage.config, self._naming.resolved(to.config))
                return await self._preview(config, revision)
            finally:
                self._changes.ask_names()

    async def _preview(self, config: Config, revision: str) -> Preview:
        before, refused = self._passage.config, None
        change: tuple[Observed, Plan] | None = None
        evidence = Evidence({}, None)
        try:
            self._changes.refuse_while_waiting()
            async with self._passage.towards(config):
                evidence = await self._passage.meanwhile(self._flows.evidence())
                change = self._reconciler.observed, self._passage.plan(config)
        except (StoppedError, InvalidConfigError):
            raise
        except LbError as error:
            refused = str(error)
        plan = change[1] if change else None
        differences = service_differences(before, config)
        services = await self._passage.meanwhile(
            asyncio.to_thread(service_previews, before, config, differences, change, evidence)
        )
        return Preview(
            source=config.source,
            revision=revision,
            services=services,
            unchanged=len(config.services)
            - sum(service.change is not ServiceChange.REMOVED for service in services),
            settings=gateway_differences(before, config),
            generation=plan is not None and plan.build,
            restart=needs_restart(before.gateway, config.gateway),
            moved_slots=sum(plan.moved.values()) if plan else 0,
            moved_share_max=largest_share(before, config, plan) if plan else 0.0,
            not_up=new_and_not_up(config, *change) if change else (),
            refused=refused,
            warnings=config.warnings,
            gateway=before.gateway.name,
            layout=self._layout,
        )
