"""The daemon: the one place that names concrete adapters and wires them to the reconciler.

All decisions are made in one task, turn by turn (``turns``): requests (reload, detach) in their
order, then a reconciler cycle. Ending the daemon never touches what forwards.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from contextlib import AsyncExitStack, suppress
from pathlib import Path

from lb_xdp import __version__
from lb_xdp.api.server import serve as serve_api
from lb_xdp.changes import Changes
from lb_xdp.chronicle import Chronicle
from lb_xdp.collector import Collector
from lb_xdp.confirmation import Confirmation
from lb_xdp.control import Control
from lb_xdp.core.event import Event, EventKind
from lb_xdp.core.model import Config
from lb_xdp.core.rings import Rings
from lb_xdp.core.targets import TargetId, addresses
from lb_xdp.cycles import Cycles
from lb_xdp.datapath.bpffs import find_bpffs, pinned_gateways
from lb_xdp.datapath.compile import build_id
from lb_xdp.datapath.gateway import Datapath, remove_pins
from lb_xdp.errors import (
    HostError,
    InterfaceError,
    LbError,
    StoppedError,
)
from lb_xdp.forecast import Forecast
from lb_xdp.instance import (
    STATE_DIRECTORY,
    locked,
    raise_limits,
    require_privilege,
)
from lb_xdp.journal import Journal
from lb_xdp.layers import Layers
from lb_xdp.ledger import Ledger
from lb_xdp.live_flows import LiveFlows
from lb_xdp.metrics.exposition import Exposition
from lb_xdp.metrics.web import serve as serve_metrics
from lb_xdp.naming import Naming
from lb_xdp.native import (
    fastest_fill,
    give_memory_back,
    keep_no_large_blocks,
    look_for_cycles_rarely,
)
from lb_xdp.netlink.follow import Follower
from lb_xdp.netlink.host import forwarding_obstacles, host_notices, probe_obstacles
from lb_xdp.passage import Passage
from lb_xdp.pending import InForceFile, Opening, file_and_gateway, openings
from lb_xdp.probes.dial import Dial, Direct
from lb_xdp.probes.prober import Prober
from lb_xdp.probing import Probing
from lb_xdp.reconciler import Reconciler
from lb_xdp.reporter import Reporter
from lb_xdp.ring_book import RingBook
from lb_xdp.store import Store
from lb_xdp.supervisor import Supervisor
from lb_xdp.turns import Turns
from lb_xdp.via import Courier
from lb_xdp.watcher import Watcher

_log = logging.getLogger(__name__)


def run(config_path: Path, replace: bool) -> None:  # noqa: FBT001 - the command's flag, as it is
    """Run the daemon until SIGTERM or SIGINT. Raises LbError; forwarding goes on in any case."""
    keep_no_large_blocks()
    look_for_cycles_rarely()
    file, name = file_and_gateway(config_path, STATE_DIRECTORY)
    require_privilege()
    raise_limits()
    with locked(name):
        in_force = InForceFile(STATE_DIRECTORY / name, config_path)
        *better, last = openings(file, in_force.load(), time.time())
        for opening in better:
            try:
                _run(opening, config_path, replace=replace)
            except LbError as error:
                _log.error("cannot go back to %s: %s", opening.written.source, error)
            else:
                return
        _run(last, config_path, replace=replace)


def _run(opening: Opening, path: Path, *, replace: bool) -> None:
    try:
        asyncio.run(Daemon(opening, path, replace=replace).main())
    except* LbError as group:
        raise _first(group) from group


def _first(group: BaseExceptionGroup[LbError]) -> LbError:
    """Return the error to show: task groups nest them."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if not isinstance(error, LbError):
        raise TypeError(type(error)) from group
    return error


def detach(name: str) -> list[str]:
    """Remove program and pins of a gateway whose daemon does not run; returns what was removed."""
    require_privilege()
    if name not in pinned_names():
        return []
    with locked(name):
        return remove_pins(name)


def pinned_names() -> list[str]:
    """Return the names of the gateways that have pins on this host."""
    return pinned_gateways(find_bpffs())


class Daemon:
    """One run of the daemon."""

    def __init__(self, opening: Opening, path: Path, *, replace: bool) -> None:
        self._opening = opening
        self._gateway = opening.written.config.gateway  # what a reload changes of it is not used
        self._directory = STATE_DIRECTORY / self._gateway.name
        self._replace = replace
        self._chronicle = Chronicle(Journal(self._directory))
        self._record = self._chronicle.record
        self._ledger = Ledger(path, InForceFile(self._directory, path), opening)
        self._naming = Naming(self._directory, self._record, self._on_names)
        self._turns = Turns()
        self._supervisor = Supervisor()
        self._courier = Courier()
        self._exposition = Exposition()

    # The life of the daemon.

    async def main(self) -> None:
        """Start, work until told to stop, and leave forwarding as it is."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        loop.add_signal_handler(signal.SIGHUP, self._on_hangup)
        async with AsyncExitStack() as stack:
            stack.callback(self._supervisor.close)
            stack.callback(self._chronicle.close)
            self._follower = await stack.enter_async_context(
                Follower(self._gateway.interfaces, self._turns.changed.set)
            )
            await stack.enter_async_context(self._naming)
            await self._naming.ask(self._opening.written.config)
            config = self._naming.resolved(self._opening.written.config)
            await self._follower.set_targets(addresses(config))
            self._require_ways(config)
            self._open_datapath(stack, config)
            self._prepare_for_changes(stack)
            self._look()
            await self._follower.set_targets(addresses(self._reconciler.whole))
            with suppress(StoppedError):
                await self._start(stack)
                self._tidying = asyncio.create_task(self._tidy())
                self._compiling = asyncio.create_task(self._compile_again())
                await self._turns.work(self._cycles.cycle)
                await self._tidy()
            self._tell(EventKind.STOPPED, "told to stop: what forwards goes on")
            self._supervisor.tell("STOPPING=1")

    def _open_datapath(self, stack: AsyncExitStack, config: Config) -> None:
        """Read what the kernel holds: the reconciler starts from there."""
        gateway, undone = self._gateway, self._opening.undone
        self._datapath = Datapath.open(
            gateway.name,
            gateway.xdp_mode,
            replace=self._replace,
            flow_entries=gateway.flow_table.entries,
        )
        stack.callback(self._datapath.close)
        self._ring_book = RingBook(self._directory)
        observed = self._ring_book.completed(self._datapath.observe())
        store = Store(self._directory)
        kept = store.load()
        self._reconciler = Reconciler(
            config,
            self._datapath,
            observed,
            build_id(),
            time.monotonic,
            former=self._naming.resolved(undone.config) if undone else None,
            overrides=kept.overrides,
            lingering=kept.lingering,
            record=self._record,
            rings=Rings(fastest_fill()),
        )
        self._layers = Layers(self._reconciler, store, self._record)
        self._names = self._present_names()
        self._collector = Collector(self._reconciler, self._datapath, self._turns.changed.set)
        self._reporter = Reporter(self._reconciler, self._datapath, self._collector, self._layers)
        self._reporter.shares = self._chronicle.shares
        self._flows = LiveFlows(self._reconciler, self._datapath)

    def _prepare_for_changes(self, stack: AsyncExitStack) -> None:
        """Wire what takes the gateway from one configuration to another."""
        changed = self._turns.changed.set
        observe = self._exposition.observe_probe
        self._probing = Probing(self._reconciler, self._courier, changed, observe)
        self._cycles = Cycles(
            *(self._reconciler, self._layers, self._probing, self._turns, self._reporter),
            compile_ahead=self._datapath.compile_ahead,
            prepare=self._datapath.prepare,
            look=self._look,
            on_gone=self._forget_gone,
        )
        self._passage = Passage(
            self._reconciler,
            self._follower,
            self._datapath,
            self._probing,
            self._turns,
            look=self._look,
            cycle=self._cycles.cycle,
            require=self._require_ways,
        )
        self._changes = Changes(
            *(self._ledger, self._naming, self._passage, self._turns, self._supervisor),
            record=self._record,
            arrived=self._on_arrival,
        )
        self._confirmation = Confirmation(self._ledger, self._changes, self._turns, self._record)
        stack.callback(self._confirmation.close)
        self._forecast = Forecast(
            *(self._reconciler, self._ledger, self._changes, self._naming),
            passage=self._passage,
            flows=self._flows,
            layout=self._datapath.layout_version,
        )
        self._control = Control(
            reconciler=self._reconciler,
            ledger=self._ledger,
            naming=self._naming,
            chronicle=self._chronicle,
            reporter=self._reporter,
            live_flows=self._flows,
            layers=self._layers,
            probing=self._probing,
            changes=self._changes,
            confirmation=self._confirmation,
            forecast=self._forecast,
            turns=self._turns,
            remove=self._datapath.remove,
        )

    def _look(self) -> None:
        """Take in what netlink knows by now."""
        topology = self._follower.topology
        self._reconciler.topology = topology
        self._probing.lead()
        config = self._reconciler.config
        names = [name for name in config.gateway.interfaces if name in topology.interfaces]
        with suppress(InterfaceError):  # one is just going away: netlink will tell
            self._reporter.host_notices = (
                *host_notices(config.services, names, topology.local_addresses),
                *self._courier.notices(),
            )

    async def _start(self, stack: AsyncExitStack) -> None:
        """Listen, probe, and bring the datapath to the goal for the first time."""
        gateway = self._gateway
        try:
            if gateway.metrics_listen is not None:
                await stack.enter_async_context(
                    serve_metrics(gateway.metrics_listen, self._exposition, self._control.snapshot)
                )
            path, group, remote = gateway.api_socket, gateway.api_group, gateway.api_listener
            await stack.enter_async_context(
                serve_api(Path(path), self._control, group=group, remote=remote)
            )
            stack.push_async_callback(self._courier.close)
            prober = await stack.enter_async_context(
                Prober(
                    self._probing.on_result,
                    pace=self._reconciler.vitals.pace_s,
                    dial_of=self._dial_of,
                )
            )
            self._probing.prober = prober
            self._watcher = Watcher(
                self._reconciler,
                self._datapath,
                probe_now=prober.probe_now,
                changed=self._turns.changed.set,
                record=self._record,
            )
            await self._cycles.first(self._passage.settle)
            for work in (
                *(self._collector.work(), self._watcher.work()),
                *(self._flows.work(), self._cycles.show_life(self._supervisor)),
            ):
                stack.callback(asyncio.create_task(work).cancel)
        finally:
            self._remove_unused_pins()
        services = len(self._reconciler.config.services)
        self._supervisor.tell(f"READY=1\nSTATUS=forwarding for {services} services")
        _log.info("ready", extra={"gateway": gateway.name, "version": __version__})
        self._tell(EventKind.STARTED, f"version {__version__}")
        self._find()
        if self._opening.refused is not None:
            self._changes.tell_of_start(self._opening.refused)
        if self._opening.undone is not None:
            self._confirmation.tell_of_start(self._opening.undone)
        await self._ledger.catch_up()
        self._confirmation.begin()

    async def _tidy(self) -> None:
        """Let the daemon that starts next know what it need not build; hold no memory for it."""
        self._reconciler.forget_former()
        await asyncio.to_thread(self._ring_book.write, self._reconciler.observed)
        await asyncio.to_thread(give_memory_back)

    async def _compile_again(self) -> None:
        """Have the compiler's work at hand that an earlier life did: a reload need not wait for it.

        Where it cannot be done, a reload says why.
        """
        structure = self._reconciler.observed.structure
        if structure is not None:
            try:
                await asyncio.to_thread(self._datapath.compile_ahead, structure)
            except LbError as error:
                _log.warning("a reload will be refused: %s", error)

    def _remove_unused_pins(self) -> None:
        """Leave nothing behind where nothing forwarded before, and nothing does now."""
        observed = self._reconciler.observed
        if not (observed.generation or observed.attached):
            self._datapath.remove()

    # Signals and other words: they wait for their turn.

    def _stop(self) -> None:
        _log.info("told to stop: what forwards goes on")
        self._turns.stop()

    def _on_hangup(self) -> None:
        self._turns.ask(self._changes.reload_on_hangup)

    def _on_names(self) -> None:
        self._turns.ask(self._take_answers)

    async def _take_answers(self) -> None:
        await self._changes.take_answers()

    def _dial_of(self, target: TargetId) -> Dial:
        return Direct() if target.service is None else self._courier.dial(target)

    # Changes of the configuration.

    async def _on_arrival(self) -> None:
        """Let metrics, journal and disk follow to another configuration."""
        self._forget_gone()
        self._find()
        await self._cycles.keep_up()
        self._tidying = asyncio.create_task(self._tidy())

    def _require_ways(self, config: Config) -> None:
        """Refuse what this host's kernel would drop: replies that it sends, answers to probes."""
        services, interfaces = config.services, config.gateway.interfaces
        local = self._follower.topology.local_addresses
        _require(forwarding_obstacles(services, interfaces))
        _require(probe_obstacles(services, interfaces, local))

    def _present_names(self) -> frozenset[tuple[str, str]]:
        whole = self._reconciler.whole
        return frozenset((service.name, backend.name) for service, backend in whole.backends())

    def _forget_gone(self) -> None:
        """Stop showing backends that are gone for good."""
        names = self._present_names()
        for name in self._names - names:
            self._exposition.forget(*name)
        self._names = names

    def _find(self) -> None:
        """Let the journal know the states that backends are in from their beginning on."""
        self._chronicle.find(self._reconciler.states(), time.time())

    def _tell(self, kind: EventKind, cause: str) -> None:
        self._record(Event(kind, time.time(), cause=cause))


def _require(obstacles: list[str]) -> None:
    if obstacles:
        raise HostError("; ".join(obstacles))
