"""File, overrides and what is observed, together: set, kept, ended, and told as events."""

from __future__ import annotations

import time
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from lb_xdp.core.desired import BackendId
from lb_xdp.core.event import Event, EventKind
from lb_xdp.core.health import ProbeResult
from lb_xdp.core.model import (
    Algorithm,
    Backend,
    BackendName,
    CheckKind,
    Config,
    Gateway,
    HealthCheck,
    Mode,
    Panic,
    Pool,
    Protocol,
    Service,
    ServiceName,
    XdpMode,
)
from lb_xdp.core.override import Kind, Override, Overrides, Subject
from lb_xdp.core.picture import Figures
from lb_xdp.core.plan import Observed, Plan
from lb_xdp.core.report import orphan_notices, panic_notices, service_statuses
from lb_xdp.core.snapshot import BackendStatus, Health, State
from lb_xdp.core.tally import Tallies
from lb_xdp.core.targets import TargetId
from lb_xdp.core.topology import Interface, NextHop, Topology
from lb_xdp.errors import StoreError, UnknownNameError
from lb_xdp.layers import Layers
from lb_xdp.reconciler import Reconciler
from lb_xdp.store import Store
from lb_xdp.witness import log_event, membership_events, sentence
from tests.unit.test_override import asked
from tests.unit.test_store import no_room

MAC = b"\2\0\0\0\0\1"
VIP = IPv4Address("203.0.113.10")
BACKENDS = tuple(
    Backend(BackendName(f"web{number}"), IPv4Address("10.0.0.0") + number, 80)
    for number in (1, 2, 3)
)
TOPOLOGY = Topology(
    {"eth0": Interface("eth0", 1, MAC, 1500, up=True)},
    {backend.address: NextHop(1, MAC, MAC, None, on_link=True) for backend in BACKENDS},
)


def config(*backends: Backend, **changes: object) -> Config:
    pool = Pool("web", backends, HealthCheck(CheckKind.TCP, rise=1, fall=1), drain_timeout_s=60)
    pool = replace(pool, **changes)  # type: ignore[arg-type]  # keys of a pool by their names
    service = Service(ServiceName("web"), VIP, 80, Protocol.TCP, Mode.DSR, pool)
    return Config(Gateway("gw1", ("eth0",), XdpMode.AUTO, "/run/x", None), (service,))


def tracked(of: Config) -> Config:
    """Return the configuration with every flow recorded."""
    return replace(of, services=tuple(replace(s, algorithm=Algorithm.RANDOM) for s in of.services))


class Memory:
    """A datapath that remembers what it was told."""

    def apply(self, plan: Plan, observed: Observed) -> Observed:
        return replace(
            observed,
            generation=plan.generation,
            structure=plan.structure,
            indices=plan.indices,
            records=plan.records if plan.build else {**observed.records, **plan.records},
            rings={**observed.rings, **plan.rings},
            attached=dict(plan.interfaces),
        )

    def observe(self) -> Observed:
        return Observed()


class Gate:
    """A reconciler at work, its clock, its disk and what it told."""

    def __init__(self, folder: Path, of: Config | None = None, after: Gate | None = None) -> None:
        self.now_s = 100.0
        self.events: list[Event] = []
        self.folder = folder
        store = Store(folder)
        kept = store.load()
        self.reconciler: Reconciler = Reconciler(
            of or config(*BACKENDS),
            Memory(),
            replace(after.reconciler.observed, applied=None) if after else Observed(),
            1,
            lambda: self.now_s,
            overrides=kept.overrides,
            lingering=kept.lingering,
            record=self.events.append,
        )
        self.layers = Layers(self.reconciler, store, self.events.append)
        self.reconciler.topology = TOPOLOGY

    def probe(self, number: int, *, ok: bool) -> None:
        result = ProbeResult(ok, "200" if ok else "refused", 0.01, self.now_s)
        self.reconciler.on_probe(TargetId("web", BACKENDS[number - 1].key), result)

    def begin(self) -> Gate:
        """Find all backends up, and tell nothing of it."""
        for number in (1, 2, 3):
            self.probe(number, ok=True)
        self.reconciler.cycle()
        self.events.clear()
        return self

    def go_to(self, of: Config) -> None:
        self.reconciler.adopt(of)
        self.reconciler.cycle()

    def statuses(self) -> dict[str, BackendStatus]:
        reconciler = self.reconciler
        standings = reconciler.standings()
        figures = Figures({}, {}, {}, Tallies().of(reconciler.observed.rings))
        views = reconciler.picture(1000.0).views(standings, figures)
        (service,) = service_statuses(reconciler.whole, TOPOLOGY, views, {}, standings.panics)
        return {backend.name: backend for backend in service.backends}

    def up(self, number: int) -> bool:
        return self.reconciler.observed.records[self.identity(number)].up

    def identity(self, number: int) -> BackendId:
        return BackendId(self.reconciler.config.services[0].key, BACKENDS[number - 1].key)

    def told(self) -> list[tuple[EventKind, str, str, str]]:
        found = [(e.kind, e.backend, e.before, e.after) for e in self.events]
        self.events.clear()
        return found


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path / "gw1").begin()


# Overrides.


async def test_an_override_is_on_disk_and_then_in_force(gate: Gate) -> None:
    """The datapath gets it with the next cycle; author, reason and both states are told."""
    wish = replace(asked("web1", "drain"), reason="disks")
    await gate.layers.set((wish,))
    assert Store(gate.folder).load().overrides == Overrides().having(wish)
    assert gate.told() == [(EventKind.OVERRIDE_SET, "web1", "", "admin drain")]
    gate.reconciler.cycle()
    record = gate.reconciler.observed.records[gate.identity(1)]
    assert (record.up, record.no_new) == (True, True)
    (event,) = gate.events
    assert (event.kind, event.before, event.after) == (EventKind.BACKEND_STATE, "up", "drain")
    assert (event.author, event.cause) == ("ann", "drain by ann: disks")
    shown = gate.statuses()["web1"]
    assert (shown.weight, shown.configured_weight, shown.slots) == (0, 100, 0)
    assert shown.overrides[0].author == "ann"
    assert shown.state is State.DRAIN


async def test_flows_that_no_record_knows_are_told_of(gate: Gate, tmp_path: Path) -> None:
    """A drained backend may have some until its slots settle; not where every flow has one."""
    await gate.layers.set((asked("web1", "drain"),))
    gate.reconciler.cycle()
    assert [name for name, shown in gate.statuses().items() if shown.hidden] == ["web1"]
    gate.now_s += 901
    gate.reconciler.cycle()
    assert not gate.statuses()["web1"].hidden
    exact = Gate(tmp_path / "gw2", tracked(config(*BACKENDS))).begin()
    await exact.layers.set((asked("web1", "drain"),))
    exact.reconciler.cycle()
    assert not exact.statuses()["web1"].hidden


async def test_without_room_on_disk_nothing_changes(gate: Gate) -> None:
    """The request is refused; neither the datapath nor a restart sees anything of it."""
    await gate.layers.set((asked("web1", "drain"),))
    with no_room(), pytest.raises(StoreError, match="nothing was changed"):
        await gate.layers.set((asked("web2", "down"),))
    with no_room(), pytest.raises(StoreError):
        await gate.layers.clear((asked("web1", "drain").subject,), "ann")
    gate.reconciler.cycle()
    assert gate.up(2)
    assert gate.reconciler.overrides == Overrides().having(asked("web1", "drain"))
    assert Store(gate.folder).load().overrides == gate.reconciler.overrides
    assert EventKind.OVERRIDE_CLEARED not in [kind for kind, *_ in gate.told()]


async def test_all_or_none(gate: Gate) -> None:
    """One wrong name among several: nothing is set, nothing is told; clearing passes it over."""
    with pytest.raises(UnknownNameError, match="web1, web2, web3"):
        await gate.layers.set((asked("web1", "drain"), asked("web9", "drain")))
    await gate.layers.set((asked("web1", "drain"),))
    missing = Subject("web", "web1", Kind.WEIGHT)
    assert await gate.layers.clear((missing,), "ann") == ()
    assert len(gate.reconciler.overrides) == 1
    gone = await gate.layers.clear((missing, asked("web1", "drain").subject), "ann")
    assert [each.value for each in gone] == ["drain"]


@pytest.mark.parametrize("how", ["clear", "ready"])
async def test_the_file_holds_again(gate: Gate, how: str) -> None:
    """Cleared, or asked to be ready, which is the same."""
    await gate.layers.set((asked("web1", "down"),))
    gate.reconciler.cycle()
    assert not gate.up(1)
    gate.events.clear()
    if how == "clear":
        await gate.layers.clear((asked("web1", "down").subject,), "bob")
    else:
        await gate.layers.set((asked("web1", "ready"),))
    (event,) = gate.events
    assert (event.kind, event.before) == (EventKind.OVERRIDE_CLEARED, "admin down")
    assert event.author == ("bob" if how == "clear" else "ann")
    gate.reconciler.cycle()
    assert gate.up(1)
    assert not Store(gate.folder).load().overrides


async def test_it_ends_by_itself(gate: Gate) -> None:
    """Told, in force with the next cycle, and gone from disk when that can be written."""
    ends_s = time.time() - 1
    await gate.layers.set((asked("web1", "drain", ends_s=ends_s), asked("web2", "50")))
    gate.reconciler.cycle()
    gate.events.clear()
    gate.layers.expire()
    assert gate.told() == [(EventKind.OVERRIDE_EXPIRED, "web1", "admin drain", "")]
    assert gate.layers.behind()
    with no_room():
        await gate.layers.keep_up()
    assert "nothing was changed" in gate.layers.notice
    await gate.layers.keep_up()
    assert gate.layers.notice == ""
    assert not gate.layers.behind()
    assert [o.value for o in Store(gate.folder).load().overrides] == ["50"]
    gate.layers.expire()
    assert not gate.layers.behind()


async def test_a_restart_finds_them(gate: Gate) -> None:
    """Before the first probe: what was cut stays cut, and is not taken for ill."""
    await gate.layers.set((asked("web1", "down"), asked("web2", "7")))
    gate.reconciler.cycle()
    again = Gate(gate.folder, after=gate)
    assert again.reconciler.undecided(again.reconciler.config) == {TargetId("web", BACKENDS[0].key)}
    again.reconciler.cycle()
    assert (again.up(1), again.up(2)) == (False, True)
    assert again.statuses()["web2"].weight == 7
    again.reconciler.set_overrides(Overrides())
    again.probe(1, ok=True)
    again.reconciler.cycle()
    assert again.up(1)


async def test_maint_rests_and_the_first_result_decides(gate: Gate) -> None:
    """Nobody waits for a probe that does not come; flows go on until one has come again."""
    (target,) = [
        t for t in gate.reconciler.probed(gate.reconciler.config) if t.backend == BACKENDS[0].key
    ]
    await gate.layers.set((asked("web1", "maint"),))
    assert target not in gate.reconciler.probed(gate.reconciler.config)
    gate.reconciler.cycle()
    assert gate.up(1)
    assert gate.reconciler.ready
    await gate.layers.set((asked("web1", "ready"),))
    assert target in gate.reconciler.probed(gate.reconciler.config)
    gate.reconciler.cycle()
    assert gate.statuses()["web1"].health is Health.UNKNOWN
    assert gate.up(1)
    gate.probe(1, ok=False)
    gate.reconciler.cycle()
    assert not gate.up(1)
    assert [change[2:] for change in gate.told() if change[0] is EventKind.BACKEND_STATE] == [
        ("up", "maint"),
        ("maint", "unknown"),
        ("unknown", "down"),
    ]


def test_an_override_about_nobody_is_told() -> None:
    """Its backend may come back: it stays, and a notice says so."""
    held = Overrides().having(asked("web1", "drain"), asked("web9", "drain"))
    (notice,) = orphan_notices(config(*BACKENDS), held)
    assert notice.startswith("override web/web9 admin: ")
    assert orphan_notices(config(*BACKENDS), Overrides()) == []


# What is observed.


def test_a_change_of_state_names_its_probe(gate: Gate) -> None:
    """What it was answered, and how long that took; nothing twice."""
    gate.probe(1, ok=False)
    gate.reconciler.cycle()
    gate.reconciler.cycle()
    (event,) = gate.events
    assert (event.before, event.after, event.cause) == ("up", "down", "refused")
    assert (event.service, event.backend, event.duration_s) == ("web", "web1", 0.01)


def test_a_way_that_is_lost_is_a_change_of_state(gate: Gate) -> None:
    """The cause is the network's, not the probe's."""
    hops = {a: hop for a, hop in TOPOLOGY.next_hops.items() if a != BACKENDS[0].address}
    gate.reconciler.topology = replace(TOPOLOGY, next_hops=hops)
    gate.reconciler.cycle()
    (event,) = gate.events
    assert (event.after, event.cause) == ("down", "no route to 10.0.0.1")


def test_panic_and_priorities_are_events(tmp_path: Path) -> None:
    """Each edge once; the notice is there in between."""
    low = replace(BACKENDS[2], priority=1)
    gate = Gate(tmp_path, config(*BACKENDS[:2], low, panic=Panic.ALL)).begin()
    for number in (1, 2):
        gate.probe(number, ok=False)
    gate.reconciler.cycle()
    assert (EventKind.PRIORITY, "", "0", "1") in gate.told()
    gate.probe(3, ok=False)
    gate.reconciler.cycle()
    gate.reconciler.cycle()
    assert [change[0] for change in gate.told()].count(EventKind.PANIC) == 1
    panics = gate.reconciler.standings().panics
    (notice,) = panic_notices(gate.reconciler.whole, panics)
    assert notice.startswith("PANIC: service web: no backend is healthy")
    assert all(gate.up(number) for number in (1, 2, 3))
    gate.probe(1, ok=True)
    gate.reconciler.cycle()
    told = gate.told()
    assert (EventKind.PANIC_OVER, "", "", "") in told
    assert (EventKind.PRIORITY, "", "1", "0") in told


def test_a_ramp_wakes_the_reconciler(tmp_path: Path) -> None:
    """The next cycle is due with the next step."""
    gate = Gate(tmp_path, config(*BACKENDS, slow_start_s=10.0)).begin()
    gate.probe(1, ok=False)
    gate.reconciler.cycle()
    gate.probe(1, ok=True)
    gate.reconciler.cycle()
    assert gate.statuses()["web1"].weight == 9
    assert gate.reconciler.next_deadline_ns() == 101 * 10**9
    gate.now_s = 101.0
    gate.reconciler.cycle()
    assert gate.statuses()["web1"].weight == 18


# Who leaves.


async def test_a_backend_that_leaves_drains_and_is_forgotten(gate: Gate) -> None:
    """It keeps its record, gets no slot, and goes with another generation when its time is up."""
    first = gate.reconciler.observed.generation
    gate.go_to(config(*BACKENDS[1:]))
    assert gate.reconciler.observed.generation == first
    shown = gate.statuses()["web1"]
    assert (shown.state, shown.weight, shown.slots) == (State.DRAIN, 0, 0)
    assert shown.detail == "removed from the file, 60 s left; 200"
    assert gate.layers.behind()
    await gate.layers.keep_up()
    gate.now_s += 20
    again = Gate(gate.folder, config(*BACKENDS[1:]), after=gate)
    assert list(again.statuses()) == ["web2", "web3", "web1"]
    gate.reconciler.let_go()
    gate.now_s += 40
    gate.events.clear()
    gate.reconciler.let_go()
    gate.reconciler.cycle()
    assert [change[:2] for change in gate.told()] == [(EventKind.BACKEND_FORGOTTEN, "web1")]
    assert gate.reconciler.observed.generation == first + 1
    assert gate.identity(1) not in gate.reconciler.observed.records
    assert list(gate.statuses()) == ["web2", "web3"]


def test_coming_back_revives_at_once(gate: Gate) -> None:
    """No new generation, no probe to wait for."""
    first = gate.reconciler.observed.generation
    gate.go_to(config(*BACKENDS[1:]))
    gate.go_to(config(*BACKENDS))
    assert gate.statuses()["web1"].state is State.UP
    assert gate.statuses()["web1"].slots > 0
    assert gate.reconciler.observed.generation == first


def test_the_same_generation_is_prepared_and_taken(gate: Gate) -> None:
    """What a reload tries out has the lingering backends in it already."""
    plan, desired = gate.reconciler.plan(config(*BACKENDS[1:]))
    assert not plan.build
    assert gate.identity(1) in desired.records


def test_who_has_no_flow_left_is_forgotten_early(tmp_path: Path) -> None:
    """Where every flow has a record, none is left when none names it in a look since then."""
    gate = Gate(tmp_path, tracked(config(*BACKENDS))).begin()
    index = gate.reconciler.observed.indices[gate.identity(1)]
    gate.go_to(tracked(config(*BACKENDS[1:])))
    assert not gate.reconciler.on_flows({}, gate.now_s - 1)
    assert not gate.reconciler.on_flows({index: 1}, gate.now_s + 1)
    assert gate.reconciler.on_flows({}, gate.now_s + 1)
    gate.reconciler.let_go()
    gate.reconciler.cycle()
    assert list(gate.statuses()) == ["web2", "web3"]


def test_flows_without_a_record_are_waited_for(gate: Gate) -> None:
    """While slots are unsettled there may be some that have not shown themselves."""
    gate.go_to(config(*BACKENDS[1:]))
    assert not gate.reconciler.on_flows({}, gate.now_s + 1)
    gate.reconciler.roster.lingering = {
        key: replace(one, until_s=10_000.0) for key, one in gate.reconciler.lingering.items()
    }
    gate.now_s += 901
    gate.reconciler.cycle()
    assert gate.reconciler.on_flows({}, gate.now_s + 1)


def test_reports_name_who_came_and_who_went() -> None:
    """By the file's names, though the same server under another name is neither."""
    renamed = replace(BACKENDS[0], name=BackendName("first"))
    before, after = config(*BACKENDS[:2]), config(renamed, BACKENDS[2])
    events = membership_events(before, after, 5.0)
    assert [(event.kind, event.backend) for event in events] == [
        (EventKind.BACKEND_REMOVED, "web2"),
        (EventKind.BACKEND_ADDED, "web3"),
    ]


def test_an_event_is_a_sentence_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """A panic is an error, a loss a warning, the rest is information."""
    state = Event(EventKind.BACKEND_STATE, 0, "web", "web1", "up", "down", "refused", "ann")
    assert sentence(state) == "web/web1: backend_state up -> down: refused (by ann)"
    caplog.set_level("INFO")
    for event in (state, Event(EventKind.PANIC, 0, "web"), Event(EventKind.STARTED, 0)):
        log_event(event)
    assert [record.levelname for record in caplog.records] == ["WARNING", "ERROR", "INFO"]


def test_wishes_are_values(gate: Gate) -> None:
    """Setting them in force is not yet a cycle."""
    wish = Override(Subject("web", "web1", Kind.ADMIN), "down", "ann", "", 0)
    gate.reconciler.set_overrides(Overrides().having(wish))
    assert gate.up(1)
    gate.reconciler.cycle()
    assert not gate.up(1)
