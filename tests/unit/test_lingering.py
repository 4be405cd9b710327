"""Backends that left the file: who lingers, under which name, and for how long."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from lb_xdp.core.desired import BackendId, BackendRecord
from lb_xdp.core.goals import desire
from lb_xdp.core.lingering import (
    Farewell,
    Lingering,
    after_restart,
    extended,
    farewells,
    lingering_after,
)
from lb_xdp.core.model import (
    Backend,
    BackendName,
    CheckKind,
    Config,
    Gateway,
    HealthCheck,
    Mode,
    Pool,
    Protocol,
    Service,
    ServiceName,
    Session,
    XdpMode,
)
from lb_xdp.core.override import Overrides
from lb_xdp.core.plan import Observed
from lb_xdp.core.rings import Rings
from lb_xdp.core.snapshot import Admin
from lb_xdp.core.targets import TargetId, addresses, checks, members, resting, targets
from lb_xdp.core.topology import Topology
from tests.unit.test_override import asked

VIP = IPv4Address("203.0.113.10")
CHECK = HealthCheck(CheckKind.TCP)


def backend(number: int) -> Backend:
    return Backend(BackendName(f"web{number}"), IPv4Address("10.0.0.0") + number, 80)


def service(*numbers: int, pool: str = "web", port: int = 80, mode: Mode = Mode.DSR) -> Service:
    held = Pool(pool, tuple(map(backend, numbers)), CHECK, drain_timeout_s=60)
    return Service(ServiceName(f"web{port}"), VIP, port, Protocol.TCP, mode, held)


def config(*services: Service) -> Config:
    return Config(Gateway("gw1", ("eth0",), XdpMode.AUTO, "/run/x", None), services)


def identity(number: int, of: Service | None = None) -> BackendId:
    return BackendId((of or service()).key, backend(number).key)


def observed(of: Config, *down: int) -> Observed:
    """Return what the kernel holds while a configuration is at work."""
    goal = desire(of, Topology(), frozenset(), Rings().ring_of, build=1, held={})
    gone = {backend(number).key for number in down}
    records: dict[BackendId, BackendRecord] = {
        key: replace(record, up=key.backend not in gone) for key, record in goal.records.items()
    }
    return Observed(1, goal.structure, records=records)


def test_who_leaves_the_file_lingers() -> None:
    """With its name and its pool, for the pool's time; who stays does not."""
    before, after = config(service(1, 2)), config(service(2))
    found = lingering_after(after, observed(before), {}, before, 100)
    assert found == {identity(1): Lingering(identity(1), "web1", "web", 100, 160)}


def test_its_time_goes_on() -> None:
    """Another reload does not begin it anew; coming back ends it."""
    before, after = config(service(1, 2)), config(service(2))
    held = lingering_after(after, observed(before), {}, before, 100)
    assert lingering_after(config(service(3)), observed(before), held, after, 130)[
        identity(1)
    ] == held[identity(1)]  # fmt: skip
    assert lingering_after(before, observed(before), held, after, 130) == {}
    assert lingering_after(after, observed(before), held, after, 160) == held


@pytest.mark.parametrize(
    "after",
    [
        config(service(2, port=81)),
        config(service(2, mode=Mode.IPIP)),
        config(replace(service(2), session=Session(flows=False))),
    ],
)
def test_who_has_no_flow_to_keep_is_gone_at_once(after: Config) -> None:
    """The service left, or goes another way, or never kept a flow."""
    stateless = not after.services[0].session.flows
    before = config(replace(service(1, 2), session=Session(flows=not stateless)))
    assert lingering_after(after, observed(before), {}, before, 100) == {}


def test_who_was_down_is_gone_at_once() -> None:
    """Its flows went elsewhere when it died. One that dies while it lingers keeps its time."""
    before, after = config(service(1, 2)), config(service(2))
    assert lingering_after(after, observed(before, 1), {}, before, 100) == {}
    held = lingering_after(after, observed(before), {}, before, 100)
    assert lingering_after(after, observed(before, 1), held, after, 101) == held


def test_without_a_time_to_drain_nobody_lingers() -> None:
    """``drain_timeout: 0s`` is for those who want to cut."""
    before = config(service(1, 2))
    left = service(2)
    after = config(replace(left, pool=replace(left.pool, drain_timeout_s=0.0)))
    assert lingering_after(after, observed(before), {}, before, 100) == {}


def test_nothing_lingers_where_nothing_forwarded() -> None:
    """The first start of all."""
    assert lingering_after(config(service(1)), Observed(), {}, None, 100) == {}


def test_an_address_of_the_gateway_itself_does_not_linger() -> None:
    """Packets to what is a VIP or a source by now would come back here."""
    before = config(service(1, 2))
    vip = replace(service(2), vip=backend(1).address, port=81)
    after = config(service(2), vip)
    assert lingering_after(after, observed(before), {}, before, 100) == {}
    gateway = replace(before.gateway, snat_addresses=(backend(1).address,))
    after = replace(config(service(2)), gateway=gateway)
    assert lingering_after(after, observed(before), {}, before, 100) == {}


def test_a_restart_finds_who_lingers_in_the_kernel() -> None:
    """With name and time from the disk; without it by address, for the whole time."""
    before, after = config(service(1, 2)), config(service(2))
    held = lingering_after(after, observed(before), {}, before, 100)
    kept = farewells(held, 110, 5000)
    assert kept == (Farewell(identity(1), "web1", "web", 5050),)
    again = after_restart(kept, after, 7, 5020)
    assert lingering_after(after, observed(before), again, None, 7) == {
        identity(1): Lingering(identity(1), "web1", "web", 7, 37)
    }
    assert lingering_after(after, observed(before), {}, None, 7) == {
        identity(1): Lingering(identity(1), "10.0.0.1:80", "web", 7, 67)
    }
    assert lingering_after(after, Observed(), again, None, 7) == {}


@pytest.mark.parametrize(("now_timestamp_s", "left_s"), [(5040, 10), (9000, 0), (1000, 60)])
def test_a_clock_that_was_set_makes_nobody_stay_longer(
    now_timestamp_s: float, left_s: float
) -> None:
    """At most the pool's own time; what ended while nobody was there has ended."""
    kept = (Farewell(identity(1), "web1", "web", 5050),)
    (one,) = after_restart(kept, config(service(2)), 7, now_timestamp_s).values()
    assert one.until_s == 7 + left_s
    assert after_restart(kept, config(service(2, port=81)), 7, now_timestamp_s) == {}


def test_there_is_an_end_to_how_many_linger() -> None:
    """So many that all can be replaced at once; the latest ones stay."""
    before = config(service(*range(1, 200)))
    seen = observed(before)
    key = seen.structure.services[service().key] if seen.structure else None
    assert key is not None
    many = {
        identity(number): Lingering(identity(number), "x", "web", 0, 100 + number)
        for number in range(1, 20_000)
    }
    records = dict.fromkeys(many, next(iter(seen.records.values())))
    found = lingering_after(config(service(1)), replace(seen, records=records), many, None, 50)
    assert len(found) == 16_384 - 1
    assert identity(19_999) in found
    assert identity(2) not in found


def test_names_stay_unique() -> None:
    """Somebody else may have the name by now, or even be called by the address."""
    taken = replace(backend(2), name=BackendName("web1"))
    address = replace(backend(3), name=BackendName("10.0.0.1:80"))
    staying = {identity(1): Lingering(identity(1), "web1", "web", 0, 9)}

    def name(*backends: Backend) -> str:
        held = replace(service(), pool=replace(service().pool, backends=backends))
        whole = extended(config(held), staying)
        return whole.services[0].pool.backends[-1].name

    assert name(backend(2)) == "web1"
    assert name(taken) == "10.0.0.1:80"
    assert name(taken, address) == "10.0.0.1:80 removed"


def test_nobody_lingering_changes_nothing() -> None:
    """Services without fallback and leavers are the very same objects."""
    plain = config(service(1), service(2, port=81))
    whole = extended(plain, {identity(3): Lingering(identity(3), "web3", "web", 0, 9)})
    assert whole.services[1] is plain.services[1]
    assert [b.left for b in whole.services[0].pool.backends] == [None, "web"]
    assert addresses(whole) == {backend(number).address for number in (1, 2, 3)}


def test_who_left_is_probed_as_before() -> None:
    """By its pool's check, unless its service has gone to another pool; fallbacks never are."""
    sorry = replace(backend(9), weight=0, fallback=True)
    held = service(1)
    held = replace(held, pool=replace(held.pool, fallback=sorry))
    staying = {
        identity(2): Lingering(identity(2), "web2", "web", 0, 9),
        identity(3): Lingering(identity(3), "web3", "old", 0, 9),
    }
    whole = extended(config(held), staying)
    kinds = {target: check.kind for target, check in checks(whole).items()}
    assert kinds == {
        TargetId("web", backend(1).key): CheckKind.TCP,
        TargetId("web", backend(9).key): CheckKind.NONE,
        TargetId("web", backend(2).key): CheckKind.TCP,
        TargetId("old", backend(3).key): CheckKind.NONE,
    }
    assert set(targets(whole, Overrides())) == {t for t, k in kinds.items() if k is CheckKind.TCP}


def test_who_shares_a_target_must_agree_that_it_rests() -> None:
    """In maint for one service, a backend is probed for the other, until that has it, too."""
    both = config(service(1), service(1, port=81))
    (target,) = checks(both)
    assert members(both) == {target: [("web80", "web1"), ("web81", "web1")]}
    held = Overrides().having(asked("web1", Admin.MAINT, service="web80"))
    assert resting(both, held) == frozenset()
    assert set(targets(both, held)) == {target}
    held = held.having(asked("web1", Admin.MAINT, service="web81"))
    assert resting(both, held) == {target}
    assert not targets(both, held)
    held = held.having(asked("web1", Admin.DOWN, service="web81"))
    assert set(targets(both, held)) == {target}
