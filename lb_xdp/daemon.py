"""The daemon: the one place that names concrete adapters and wires them to the reconciler.

All decisions are made in one task, turn by turn (``turns``): requests (reload, detach) in their
order, then a reconciler cycle. Ending the daemon never touches what forwards.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

from lb_xdp import __version__
from lb_xdp.api.server import serve as serve_api
from lb_xdp.chronicle import Chronicle
from lb_xdp.collector import Collector
from lb_xdp.config import MAX_SERVICE_BACKENDS, load_config
from lb_xdp.core.change import needs_restart
from lb_xdp.core.event import Event, EventFilter, EventKind
from lb_xdp.core.health import ProbeResult
from lb_xdp.core.model import Config, ServiceKey, Via
from lb_xdp.core.names import total_backends
from lb_xdp.core.override import Override, Overrides, Subject
from lb_xdp.core.plan import Plan
from lb_xdp.core.probe_way import probe_ways
from lb_xdp.core.ring import RING_SLOTS
from lb_xdp.core.rings import Rings
from lb_xdp.core.snapshot import ReloadStatus, Snapshot
from lb_xdp.core.targets import TargetId, addresses
from lb_xdp.core.wish import (
    Match,
    Outcome,
    ReloadWish,
    digest,
    moved_by_name,
    refuse_stale,
    revision,
)
from lb_xdp.datapath.bpffs import find_bpffs, pinned_gateways
from lb_xdp.datapath.compile import build_id
from lb_xdp.datapath.gateway import Datapath, remove_pins
from lb_xdp.errors import (
    DatapathError,
    HostError,
    InterfaceError,
    InvalidConfigError,
    LbError,
    StoppedError,
)
from lb_xdp.instance import (
    STATE_DIRECTORY,
    locked,
    notify,
    raise_limits,
    require_privilege,
    watchdog_s,
)
from lb_xdp.journal import Journal
from lb_xdp.layers import Layers
from lb_xdp.metrics.exposition import Exposition
from lb_xdp.metrics.web import serve as serve_metrics
from lb_xdp.naming import Naming
from lb_xdp.native import fastest_fill
from lb_xdp.netlink.follow import Follower
from lb_xdp.netlink.host import forwarding_obstacles, host_notices, probe_obstacles
from lb_xdp.probes.dial import Dial, Direct
from lb_xdp.probes.prober import Prober
from lb_xdp.reconciler import Reconciler
from lb_xdp.reporter import Reporter
from lb_xdp.store import Store
from lb_xdp.turns import Turns
from lb_xdp.via import Courier
from lb_xdp.watcher import Watcher
from lb_xdp.witness import membership_events

Result = TypeVar("Result")

_log = logging.getLogger(__name__)

_SETTLE_S = 1.5  # how long a start or reload waits for neighbours to answer
_RETRY_S = 1.0  # how soon a failed cycle is tried again
_REST_S = 0.01  # between a cycle and one that is due by time alone
_LOOK_AT_EXPIRIES_S = 60.0  # how late an override ends at most when the time of day was set
_NAMES_RETRY_S = 5.0  # how soon addresses that were refused are tried again
_YOUNG_OBJECTS = 50_000  # until Python looks for cycles: few are made, and most objects live long
_SIGNS_OF_LIFE = 4  # cycles that are asked for within the watchdog's time
_FIRST_RESULT_MARGIN_S = 0.2  # beyond the longest timeout, until undecided backends are passed over


def run(config_path: Path, replace: bool) -> None:  # noqa: FBT001 - the command's flag, as it is
    """Run the daemon until SIGTERM or SIGINT. Raises LbError; forwarding goes on in any case."""
    config = load_config(config_path)
    require_privilege()
    raise_limits()
    gc.set_threshold(_YOUNG_OBJECTS, 20, 20)
    with locked(config.gateway.name):
        try:
            asyncio.run(Daemon(config, config_path, replace=replace).main())
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
    """One run of the daemon; it is also the Controller behind the API."""

    def __init__(self, config: Config, path: Path, *, replace: bool) -> None:
        self._written = config  # as the file says; in ``_config`` names have become addresses
        self._digest = digest(config)
        self._config = config
        self._path = path
        self._replace = replace
        self._chronicle = Chronicle(Journal(STATE_DIRECTORY / config.gateway.name))
        self._record = self._chronicle.record
        self._naming = Naming(STATE_DIRECTORY / config.gateway.name, self._record, self._on_names)
        self._probing: tuple[Config, ...] = (config,)
        self._decided = asyncio.Event()
        self._turns = Turns()
        self._courier = Courier()
        self._worked_s = 0.0
        self._exposition = Exposition(self.snapshot)

    # The life of the daemon.

    async def main(self) -> None:
        """Start, work until told to stop, and leave forwarding as it is."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        loop.add_signal_handler(signal.SIGHUP, self._on_hangup)
        self._retry = loop.call_soon(self._turns.changed.set)
        self._settling = self._retry
        async with AsyncExitStack() as stack:
            stack.callback(self._chronicle.close)
            self._follower = await stack.enter_async_context(
                Follower(self._config.gateway.interfaces, self._turns.changed.set)
            )
            await stack.enter_async_context(self._naming)
            await self._naming.ask(self._written)
            self._config = self._naming.resolved(self._written)
            self._probing = (self._config,)
            await self._follower.set_targets(addresses(self._config))
            self._require_ways(self._config)
            self._open_datapath(stack)
            await self._follower.set_targets(addresses(self._reconciler.whole))
            with suppress(StoppedError):
                await self._start(stack)
                await self._turns.work(self._cycle)
            self._tell(EventKind.STOPPED, "told to stop: what forwards goes on")
            notify("STOPPING=1")

    def _open_datapath(self, stack: AsyncExitStack) -> None:
        """Read what the kernel holds: the reconciler starts from there."""
        gateway = self._config.gateway
        self._datapath = Datapath.open(
            gateway.name,
            gateway.xdp_mode,
            replace=self._replace,
            flow_entries=gateway.flow_table.entries,
        )
        stack.callback(self._datapath.close)
        observed = self._datapath.observe()
        store = Store(STATE_DIRECTORY / gateway.name)
        kept = store.load()
        self._reconciler = Reconciler(
            self._config,
            self._datapath,
            observed,
            build_id(),
            time.monotonic,
            overrides=kept.overrides,
            lingering=kept.lingering,
            record=self._record,
            rings=Rings(fastest_fill()),
        )
        self._layers = Layers(self._reconciler, store, self._record)
        self._names = self._present_names()
        self._collector = Collector(self._reconciler, self._datapath, self._turns.changed.set)
        self._reporter = Reporter(self._reconciler, self._datapath, self._collector, self._layers)
        self._look()

    def _look(self) -> None:
        """Take in what netlink knows by now."""
        topology = self._follower.topology
        self._reconciler.topology = topology
        self._lead_probes()
        config = self._reconciler.config
        names = [name for name in config.gateway.interfaces if name in topology.interfaces]
        with suppress(InterfaceError):  # one is just going away: netlink will tell
            self._reporter.host_notices = (
                *host_notices(config.services, names, topology.local_addresses),
                *self._courier.notices(),
            )

    async def _start(self, stack: AsyncExitStack) -> None:
        """Listen, probe, and bring the datapath to the goal for the first time."""
        gateway = self._config.gateway
        try:
            if gateway.metrics_listen is not None:
                await stack.enter_async_context(
                    serve_metrics(gateway.metrics_listen, self._exposition)
                )
            path, group, remote = gateway.api_socket, gateway.api_group, gateway.api_listener
            await stack.enter_async_context(serve_api(Path(path), self, group=group, remote=remote))
            stack.push_async_callback(self._courier.close)
            self._prober = await stack.enter_async_context(
                Prober(self._on_probe, pace=self._reconciler.pace_s, dial_of=self._dial_of)
            )
            self._watcher = Watcher(
                self._reconciler,
                self._datapath,
                probe_now=self._prober.probe_now,
                changed=self._turns.changed.set,
                record=self._record,
            )
            await self._first_cycle()
            for work in (self._collector.work(), self._watcher.work(), self._show_life()):
                stack.callback(asyncio.create_task(work).cancel)
        finally:
            self._remove_unused_pins()
        notify(f"READY=1\nSTATUS=forwarding for {len(self._config.services)} services")
        _log.info("ready", extra={"gateway": gateway.name, "version": __version__})
        self._tell(EventKind.STARTED, f"version {__version__}")
        self._find()

    def _remove_unused_pins(self) -> None:
        """Leave nothing behind where nothing forwarded before, and nothing does now."""
        observed = self._reconciler.observed
        if not (observed.generation or observed.attached):
            self._datapath.remove()

    async def _first_cycle(self) -> None:
        """Compile while neighbours and first probes answer, then go to the goal.

        What forwards already goes on meanwhile: its backends are decided about by their records.
        """
        self._layers.expire()
        self._reconciler.let_go()
        await self._carry_probes(self._config)
        self._probe(self._config)
        plan, _ = self._reconciler.plan()
        compiled = asyncio.to_thread(self._datapath.prepare, plan)
        await self._turns.meanwhile(
            asyncio.gather(compiled, self._settle(self._config)), self._look_meanwhile
        )
        self._look()
        self._reconciler.cycle()
        await self._keep_up()
        self._wake_in_time()

    async def _look_meanwhile(self) -> None:
        """Leave what changes to the first cycle, but for the ways of probes."""
        self._look()

    async def _settle(self, config: Config) -> None:
        """Wait, within bounds, until neighbours have answered and first probes have ended."""
        await self._follower.settle(_SETTLE_S)
        timeout_s = max(service.pool.health.timeout_s for service in config.services)
        longest_s = self._prober.begins_within_s + timeout_s
        with suppress(TimeoutError):
            async with asyncio.timeout(longest_s + _FIRST_RESULT_MARGIN_S):
                while self._reconciler.undecided(config):
                    self._decided.clear()
                    await self._decided.wait()

    async def _cycle(self) -> None:
        """Bring the datapath to the goal; a failure is told, and tried again."""
        self._look()
        self._layers.expire()
        if len(self._probing) == 1:  # a reload that is under way has its generation ready
            self._reconciler.let_go()
        try:
            plan, _ = self._reconciler.plan()
            if plan.build:  # which may take the compiler a second: probes must not wait for it
                await asyncio.to_thread(self._datapath.prepare, plan)
                self._look()
            self._reconciler.cycle()
        except DatapathError as error:
            self._reporter.trouble = f"the datapath could not be updated, trying again: {error}"
            _log.error("cycle failed, trying again: %s", error)
            self._retry.cancel()
            self._retry = asyncio.get_running_loop().call_later(_RETRY_S, self._turns.changed.set)
        else:
            self._reporter.trouble = ""
            self._worked_s = asyncio.get_running_loop().time()
            await self._keep_up()
            self._wake_in_time()

    async def _keep_up(self) -> None:
        """Let disk, probes and metrics follow when an override or a lingering backend has gone."""
        if self._layers.behind():
            self._forget_gone()
            self._probe(*self._probing)
            await self._layers.keep_up()

    async def _show_life(self) -> None:
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
                notify("WATCHDOG=1")

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

    # What others call: they leave word, or wait for their turn.

    def snapshot(self) -> Snapshot:
        """Return the gateway as it is now."""
        self._reporter.name_notices = self._naming.notices(self._written)
        return self._chronicle.completed(self._reporter.snapshot())

    async def events(self, wanted: EventFilter, wait_s: float) -> list[Event]:
        """Return events that are wanted; the Controller's part of the API."""
        return await self._chronicle.events(wanted, wait_s)

    def revision(self) -> str:
        """Return what the file and the overrides together are called."""
        return revision(self._digest, self._reconciler.overrides)

    def names(self) -> Mapping[str, Sequence[str]]:
        """Return the backends' names by service, those that linger included."""
        return {
            service.name: [backend.name for backend in service.pool.backends]
            for service in self._reconciler.whole.services
        }

    async def reload(self, wish: ReloadWish) -> Outcome:
        """Load the file again; the Controller's part of the API."""
        return await self._in_turn(wish.match, self._reload)

    def overrides(self) -> Overrides:
        """Return what was asked for at run time and still holds."""
        return self._reconciler.overrides

    async def set_overrides(self, *overrides: Override, match: Match) -> None:
        """Let these hold from now on, all or none; they are on disk before they do.

        Raises UnknownNameError, UnfitOverrideError and StoreError; then nothing was changed.
        """
        await self._in_turn(match, lambda: self._override(self._layers.set(overrides)))

    async def clear_overrides(
        self, *subjects: Subject, author: str, match: Match
    ) -> tuple[Override, ...]:
        """Let the file hold again for these, all or none, and return what held.

        ``author`` is who wants that. Raises StoreError; then nothing was changed.
        """
        change = partial(self._layers.clear, subjects, author)
        return await self._in_turn(match, lambda: self._override(change()))

    async def detach(self, match: Match) -> None:
        """Remove program and pins, and end; the Controller's part of the API."""
        await self._in_turn(match, self._detach)

    async def _in_turn(self, match: Match, change: Callable[[], Awaitable[Result]]) -> Result:
        """Make a change in its turn, unless another one came first. Raises StaleError then.

        The look and the change are one turn, so nothing comes in between.
        """

        async def carry_out() -> Result:
            refuse_stale(match, self.revision())
            return await change()

        return await self._turns.in_turn(carry_out)

    def _stop(self) -> None:
        _log.info("told to stop: what forwards goes on")
        self._turns.stop()

    def _on_hangup(self) -> None:
        self._turns.ask(self._reload_on_hangup)

    def _on_probe(self, target: TargetId, result: ProbeResult) -> None:
        if not self._courier.can_tell(target):
            return
        if self._reconciler.on_probe(target, result):
            self._decided.set()
            self._turns.changed.set()
        for service, backend in self._reconciler.members(target):
            self._exposition.observe_probe(service, backend, result.duration_s)

    async def _override(self, change: Awaitable[Result]) -> Result:
        """Change overrides; the cycle that follows in the same turn brings them to the kernel."""
        changed = await change
        self._probe(*self._probing)
        return changed

    def _probe(self, *configs: Config) -> None:
        """Probe the backends of these configurations, the last one's wishes winning."""
        self._probing = configs
        self._lead_probes()
        self._prober.set_targets(self._reconciler.probed(*configs))

    async def _carry_probes(self, *configs: Config) -> None:
        """Be ready for probes through the datapath. Raises HostError; then nothing has changed."""
        services = (service for config in configs for service in config.services)
        through = {s.vip for s in services if s.pool.health.via is Via.DATAPATH}
        await self._courier.serve(through)

    def _dial_of(self, target: TargetId) -> Dial:
        return Direct() if target.service is None else self._courier.dial(target)

    def _lead_probes(self) -> None:
        """Tell probes through the datapath where packets leave by now."""
        reconciler = self._reconciler
        topology, held = reconciler.topology, reconciler.observed.records
        ways = {
            target: way
            for config in self._probing
            for target, way in probe_ways(reconciler.whole_of(config), topology, held).items()
        }
        self._courier.set_ways(ways, topology.local_addresses)

    async def _detach(self) -> None:
        for removed in self._datapath.remove():
            _log.info("removed %s", removed)
        self._turns.stop()

    # Reload.

    async def _reload_on_hangup(self) -> None:
        with suppress(LbError):
            await self._reload()

    async def _reload(self) -> Outcome:
        """Load the file again and go there, or refuse and change nothing. Raises LbError."""
        notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            written = await asyncio.to_thread(load_config, self._path)
            await self._turns.meanwhile(self._naming.ask(written, self._written), self._cycle)
            name = await asyncio.to_thread(digest, written)
            moved = await self._go_to(self._naming.resolved(written))
            self._written, self._digest = written, name
        except LbError as error:
            problems = error.problems if isinstance(error, InvalidConfigError) else (error,)
            messages = tuple(map(str, problems))
            self._reporter.last_reload = ReloadStatus(
                success=False, timestamp_s=time.time(), errors=messages
            )
            _log.error("reload refused, nothing was changed: %s", "; ".join(messages))
            self._tell(EventKind.RELOAD_REFUSED, "; ".join(messages))
            raise
        finally:
            self._naming.ask_only(self._written)
            notify("READY=1")
        summary = _summary(self._config, moved)
        self._reporter.last_reload = ReloadStatus(success=True, timestamp_s=time.time())
        _log.info("reloaded %s: %s", self._path, summary)
        self._tell(EventKind.RELOADED, f"{self._path}: {summary}")
        services = moved_by_name(self._config, moved, RING_SLOTS)
        return Outcome(summary, self.revision(), sum(moved.values()), services)

    # Names.

    def _on_names(self) -> None:
        self._turns.ask(self._take_answers)

    async def _take_answers(self) -> None:
        """Go where names lead by now. What is refused is told, and tried again."""
        config = self._naming.resolved(self._written)
        if config == self._config:
            return
        try:
            moved = await self._go_to(config)
        except LbError as error:
            self._naming.trouble = f"addresses of backends by name not taken, trying again: {error}"
            _log.error("%s", self._naming.trouble)
            loop = asyncio.get_running_loop()
            loop.call_later(_NAMES_RETRY_S, self._turns.ask, self._take_answers)
        else:
            self._naming.trouble = ""
            _log.info("addresses of backends by name changed: %s", _summary(config, moved))

    async def _go_to(self, config: Config) -> Mapping[ServiceKey, int]:
        """Try everything that can be refused, then change; whatever fails, go back.

        Returns how many slots of each service have moved.
        """
        before = self._config
        if (total := total_backends(config)) > MAX_SERVICE_BACKENDS:
            raise HostError(f"{total:,} backends, at most {MAX_SERVICE_BACKENDS:,} are allowed")
        obstacle = needs_restart(before.gateway, config.gateway)
        if obstacle:
            raise HostError(obstacle)
        self._require_ways(config)
        try:
            await self._follow(before, config)
            self._reconciler.consider(config)
            await self._carry_probes(config, before)
            self._probe(config, before)  # what serves already is judged by its present check
            await self._turns.meanwhile(self._try_out(config), self._cycle)
            plan = self._adopt(config)
            self._config = config
        finally:
            if self._reconciler.config is not self._config:
                self._reconciler.adopt(self._config)
            self._probe(self._config)
            await self._carry_probes(self._config)
            await self._follow(self._config)
        for event in membership_events(before, config, time.time()):
            self._record(event)
        self._forget_gone()
        self._find()
        await self._keep_up()
        return plan.moved if plan else {}

    def _require_ways(self, config: Config) -> None:
        """Refuse what this host's kernel would drop: replies that it sends, answers to probes."""
        services, interfaces = config.services, config.gateway.interfaces
        local = self._follower.topology.local_addresses
        _require(forwarding_obstacles(services, interfaces))
        _require(probe_obstacles(services, interfaces, local))

    async def _follow(self, *configs: Config) -> None:
        """Follow the interfaces and backends of these configurations. Raises InterfaceError."""
        self._follower.set_interfaces({name for c in configs for name in c.gateway.interfaces})
        wholes = [self._reconciler.whole_of(config) for config in configs]
        await self._follower.set_targets({address for c in wholes for address in addresses(c)})

    async def _try_out(self, config: Config) -> None:
        """Wait until what is new is decided about, and compile what will be needed."""
        await self._settle(config)
        self._look()
        plan, _ = self._reconciler.plan(config)
        await asyncio.to_thread(self._datapath.prepare, plan)

    def _adopt(self, config: Config) -> Plan | None:
        self._reconciler.adopt(config)
        self._look()
        return self._reconciler.cycle()

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


def _summary(config: Config, moved: Mapping[ServiceKey, int]) -> str:
    slots = _count(sum(moved.values()), "slot")
    return f"{_count(len(config.services), 'service')}; {slots} moved"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _require(obstacles: list[str]) -> None:
    if obstacles:
        raise HostError("; ".join(obstacles))
