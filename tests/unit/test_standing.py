"""What each backend gets: admin states, weights, slow start, priorities, panic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lb_xdp.core.desired import BackendId
from lb_xdp.core.judge import Judge, Standings
from lb_xdp.core.lingering import Lingering, extended
from lb_xdp.core.model import (
    Backend,
    BackendKey,
    BackendName,
    CheckKind,
    Config,
    Gateway,
    HealthCheck,
    Mode,
    NoBackend,
    Panic,
    Pool,
    Protocol,
    Service,
    ServiceKey,
    ServiceName,
    XdpMode,
)
from lb_xdp.core.override import Kind, Override, Overrides, Subject
from lb_xdp.core.snapshot import Admin, Health, State
from lb_xdp.core.standing import (
    RAMP_STEPS,
    Memory,
    ServiceStanding,
    Standing,
    at_start,
    panic_sentence,
    stand_service,
)

VIP = IPv4Address("203.0.113.10")
UP, DOWN, UNKNOWN = Health.UP, Health.DOWN, Health.UNKNOWN


def backend(number: int, weight: int = 100, priority: int = 0) -> Backend:
    address = IPv4Address("10.0.0.0") + number
    return Backend(BackendName(f"web{number}"), address, 80, weight, priority=priority)


def key(number: int) -> BackendKey:
    return backend(number).key


SORRY = replace(backend(99, 0), name=BackendName("sorry"), fallback=True)


def pool(*backends: Backend, panic: Panic = Panic.NONE, **settings: float) -> Pool:
    fallback = SORRY if panic is Panic.FALLBACK else None
    check = HealthCheck(CheckKind.TCP)
    return Pool("web", backends, check, panic=panic, fallback=fallback, **settings)  # type: ignore[arg-type]  # floats and ints by their names


def config(of: Pool, *staying: int) -> Config:
    service = Service(ServiceName("web"), VIP, 80, Protocol.TCP, Mode.DSR, of)
    plain = Config(Gateway("gw1", ("eth0",), XdpMode.AUTO, "/run/x", None), (service,))
    identities = [BackendId(service.key, key(number)) for number in staying]
    return extended(plain, {i: Lingering(i, str(i.backend), "web", 0, 100) for i in identities})


def admin(number: int, value: Admin) -> Override:
    return Override(Subject("web", f"web{number}", Kind.ADMIN), value.value, "ann", "disks", 0)


def weight(number: int, value: int) -> Override:
    return Override(Subject("web", f"web{number}", Kind.WEIGHT), str(value), "ann", "", 0)


NOTHING_ASKED = Overrides()


class Trial:
    """One service over time. Healths are by the backend's number, up where none is given."""

    def __init__(self, of: Pool, *staying: int) -> None:
        self.config = config(of, *staying)
        self.memory = Memory()
        self.health: dict[int, Health] = {}
        self.overrides = Overrides()
        self.now_s = 1000.0
        self.latest: ServiceStanding | None = None

    def begin(self) -> Trial:
        """Take the service for one that was there when the daemon started."""
        (self.memory,) = at_start(self.config, None).values()
        return self

    def at(self, now_s: float, **health: Health) -> Mapping[BackendKey, Standing]:
        """Go to a time, from the beginning, with healths such as ``web1=DOWN``."""
        self.now_s = 1000.0 + now_s
        self.health.update({int(name.removeprefix("web")): h for name, h in health.items()})
        (service,) = self.config.services
        self.latest = stand_service(
            service, self.overrides, self._health_of, self.memory, self.now_s
        )
        self.memory = self.latest.memory
        return self.latest.backends

    def ask(self, *overrides: Override) -> Trial:
        self.overrides = self.overrides.having(*overrides)
        return self

    def _health_of(self, _service: Service, backend: Backend) -> Health:
        if backend.fallback:
            return Health.NONE
        return self.health.get(int(backend.address) & 0xFF, UP)

    def weights(self) -> list[int]:
        assert self.latest is not None
        return [one.weight for one in self.latest.service.pool.backends]

    def wake_s(self) -> float | None:
        assert self.latest is not None
        return None if self.latest.wake_s is None else self.latest.wake_s - 1000.0

    def panics(self) -> bool:
        assert self.latest is not None
        return self.latest.panic


def trial(*backends: Backend, staying: tuple[int, ...] = (), **settings: object) -> Trial:
    return Trial(pool(*backends, **settings), *staying).begin()  # type: ignore[arg-type]  # settings of a pool by their names


# Admin states and weights.


@pytest.mark.parametrize(
    ("asked", "health", "packets", "state"),
    [
        (Admin.READY, UP, True, State.UP),
        (Admin.READY, DOWN, False, State.DOWN),
        (Admin.READY, UNKNOWN, False, State.UNKNOWN),
        (Admin.READY, Health.NONE, True, State.UP),
        (Admin.DRAIN, UP, True, State.DRAIN),
        (Admin.DRAIN, DOWN, False, State.DOWN),
        (Admin.DRAIN, UNKNOWN, False, State.UNKNOWN),
        (Admin.MAINT, UP, True, State.MAINT),
        (Admin.MAINT, DOWN, False, State.MAINT),
        (Admin.MAINT, UNKNOWN, False, State.MAINT),
        (Admin.DOWN, UP, False, State.DOWN),
        (Admin.DOWN, Health.NONE, False, State.DOWN),
    ],
)
def test_what_was_asked_meets_what_was_seen(
    asked: Admin,
    health: Health,
    packets: bool,  # noqa: FBT001 - a value of the table
    state: State,
) -> None:
    """Only a ready backend that is healthy gets new flows; a cut one gets nothing at all."""
    one = trial(backend(1), backend(2)).ask(admin(1, asked)).at(0, web1=health)[key(1)]
    assert (one.packets, one.state(health, reachable=True), one.admin) == (packets, state, asked)
    assert one.weight == (100 if asked is Admin.READY else 0)
    assert ("disks" in one.why) == (asked is not Admin.READY)


def test_a_backend_without_a_way_to_it_is_down() -> None:
    """However healthy it is, unless its state is an operator's word."""
    found = trial(backend(1), backend(2)).ask(admin(2, Admin.MAINT)).at(0)
    assert found[key(1)].state(UP, reachable=False) is State.DOWN
    assert found[key(2)].state(UP, reachable=False) is State.MAINT


def test_weights_are_absolute_and_overrides_win() -> None:
    """An override replaces the file's weight; the file's is still known."""
    one = trial(backend(1, 100), backend(2, 50)).ask(weight(2, 300))
    found = one.at(0)
    assert one.weights() == [100, 300]
    assert (found[key(2)].configured_weight, found[key(2)].weight) == (50, 300)
    assert found[key(2)].why == "weight 300 by ann"


@pytest.mark.parametrize("file", [0, 100])
def test_weight_0_drains(file: int) -> None:
    """Weight 0, of the file or asked for, is no new flows, and what is there goes on."""
    one = trial(backend(1, file), backend(2)).ask(*([weight(1, 0)] if file else []))
    found = one.at(0)
    assert (found[key(1)].weight, found[key(1)].packets) == (0, True)
    assert found[key(1)].state(UP, reachable=True) is State.DRAIN


def test_nothing_special_leaves_the_service_as_it_is() -> None:
    """The very object: who compares by identity sees that nothing has changed."""
    one = trial(backend(1), backend(2))
    one.at(0, web2=DOWN)
    assert one.latest is not None
    assert one.latest.service is one.config.services[0]
    assert one.wake_s() is None


def test_a_removed_backend_keeps_its_flows_and_gets_no_new_ones() -> None:
    """It has no weight, however it was asked for, and is cut when its probes fail."""
    one = trial(backend(1), staying=(2,))
    assert one.at(0)[key(2)] == Standing(Admin.READY, 0, 0, packets=True, drains=True)
    assert one.at(1)[key(2)].state(UP, reachable=True) is State.DRAIN
    assert not one.at(2, web2=DOWN)[key(2)].packets


def test_after_maint_old_flows_go_on_until_the_first_result() -> None:
    """Unknown after a rest is not unknown from the start: what goes there still goes there."""
    one = trial(backend(1), backend(2)).ask(admin(1, Admin.MAINT))
    one.at(0)
    one.ask(admin(1, Admin.READY))
    waiting = one.at(1, web1=UNKNOWN)[key(1)]
    assert (waiting.weight, waiting.packets) == (0, True)
    assert one.at(2, web1=UP)[key(1)].weight == 100
    assert not one.at(3, web1=DOWN)[key(1)].packets


# Slow start.


def test_no_slow_start_when_the_daemon_starts() -> None:
    """Neither for backends that are up at once nor for those whose first probe takes a while."""
    one = trial(backend(1), backend(2), slow_start_s=10.0)
    one.at(0, web2=UNKNOWN)
    one.at(1, web2=UP)
    assert one.weights() == [100, 100]
    assert one.wake_s() is None


def test_a_backend_that_was_found_down_starts_slowly() -> None:
    """A first probe that fails decides; what comes then is a recovery."""
    one = trial(backend(1), backend(2), slow_start_s=10.0)
    one.at(0, web2=DOWN)
    one.at(1, web2=UP)
    assert one.weights() == [100, 9]


def test_slow_start_is_a_ramp_of_ten_steps() -> None:
    """From a small share, by equal steps in equal times, to the whole weight, exactly in time."""
    one = trial(backend(1), backend(2, 110), slow_start_s=30.0)
    one.at(0, web2=DOWN)
    seen, wakes = [], []
    for step in range(RAMP_STEPS + 1):
        one.at(1 + 3 * step + 0.001, web2=UP)
        seen.append(one.weights()[1])
        wakes.append(one.wake_s())
    assert seen == [10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110]
    assert wakes[:-1] == [pytest.approx(4.001 + 3 * step) for step in range(RAMP_STEPS)]
    assert wakes[-1] is None


def test_a_ramp_ends_with_its_backend_and_begins_anew() -> None:
    """Down in the middle of a slow start: the next recovery starts from the bottom."""
    one = trial(backend(1), backend(2), slow_start_s=10.0)
    one.at(0, web2=DOWN)
    one.at(1, web2=UP)
    one.at(6)
    assert one.weights() == [100, 54]
    one.at(7, web2=DOWN)
    assert one.wake_s() is None
    one.at(8, web2=UP)
    assert one.weights() == [100, 9]


def test_an_addition_starts_slowly() -> None:
    """A backend that comes with a reload has no down-up edge, and starts slowly all the same."""
    one = trial(backend(1), slow_start_s=10.0)
    one.at(0)
    one.config = config(pool(backend(1), backend(2), slow_start_s=10.0))
    one.at(1, web2=UNKNOWN)
    one.at(2, web2=UP)
    assert one.weights() == [100, 9]


def test_what_the_kernel_does_not_know_at_a_restart_is_an_addition() -> None:
    """Of two backends in the file, the one that forwarded before goes on as it was."""
    one = trial(backend(1), backend(2), slow_start_s=10.0)
    (service,) = one.config.services
    (one.memory,) = at_start(one.config, frozenset({BackendId(service.key, key(1))})).values()
    one.at(0)
    assert one.weights() == [100, 9]


@pytest.mark.parametrize("away", [Admin.DRAIN, Admin.MAINT, Admin.DOWN])
def test_made_ready_again_a_backend_starts_slowly(away: Admin) -> None:
    """The same for one that operators had taken away, were it since the daemon's start."""
    one = trial(backend(1), backend(2), slow_start_s=10.0).ask(admin(2, away))
    one.at(0, web2=UNKNOWN if away is Admin.MAINT else UP)
    one.ask(admin(2, Admin.READY))
    one.at(1, web2=UP)
    assert one.weights() == [100, 9]


def test_a_small_weight_is_never_ramped_to_nothing() -> None:
    """A backend of weight 1 has weight 1 all along."""
    one = trial(backend(1), backend(2, 1), slow_start_s=10.0)
    one.at(0, web2=DOWN)
    one.at(1, web2=UP)
    assert one.weights() == [100, 1]


# Priorities.


def test_a_standby_takes_over_and_goes_back() -> None:
    """Without a delay it leaves at once when a backend above it is healthy."""
    one = trial(backend(1), backend(2, priority=1))
    assert "stands by" in one.at(0)[key(2)].why
    assert one.weights() == [100, 0]
    one.at(1, web1=DOWN)
    assert one.weights() == [100, 100]
    one.at(2, web1=UP)
    assert one.weights() == [100, 0]
    assert one.at(3)[key(2)].packets
    assert one.at(3)[key(2)].state(UP, reachable=True) is State.UP


@pytest.mark.parametrize("gone", [Admin.DRAIN, Admin.MAINT, Admin.DOWN])
def test_a_backend_that_was_taken_away_is_not_counted(gone: Admin) -> None:
    """Operators' words call the standby as failing probes do."""
    one = trial(backend(1), backend(2, priority=1)).ask(admin(1, gone))
    one.at(0)
    assert one.weights() == [0, 100]


def test_levels_join_one_after_the_other() -> None:
    """A level joins when all above it together have too few healthy backends."""
    one = trial(
        backend(1), backend(2), backend(3, priority=5), backend(4, priority=7), min_active=2
    )
    one.at(0)
    assert one.weights() == [100, 100, 0, 0]
    one.at(1, web1=DOWN)
    assert one.weights() == [100, 100, 100, 0]
    one.at(2, web3=DOWN)
    assert one.weights() == [100, 100, 100, 100]
    assert one.latest is not None
    assert one.latest.priority == 7


def test_failback_waits_for_its_delay() -> None:
    """The standby stays for the delay, and a relapse meanwhile begins it anew."""
    one = trial(backend(1), backend(2, priority=1), failback_delay_s=10.0)
    one.at(0, web1=DOWN)
    one.at(5, web1=UP)
    assert (one.weights(), one.wake_s()) == ([100, 100], 15)
    one.at(12, web1=DOWN)
    assert one.wake_s() is None
    one.at(13, web1=UP)
    one.at(22.9)
    assert (one.weights(), one.wake_s()) == ([100, 100], 23)
    one.at(23)
    assert (one.weights(), one.wake_s()) == ([100, 0], None)


def test_unknown_is_not_healthy() -> None:
    """A backend that nothing is known of does not hold back the standby."""
    one = trial(backend(1), backend(2, priority=1))
    one.at(0, web1=UNKNOWN)
    assert one.weights() == [100, 100]


# Panic.


def test_panic_none_cuts_everybody() -> None:
    """As configured by default, nobody gets traffic; the panic is known all the same."""
    one = trial(backend(1), backend(2, priority=1))
    found = one.at(0, web1=DOWN, web2=DOWN)
    assert one.panics()
    assert not any(standing.packets for standing in found.values())


def test_panic_all_opens_for_everybody_that_nobody_took_away() -> None:
    """All priorities at once; what is drained, down or of weight 0 stays out of it."""
    one = trial(
        *(backend(1), backend(2, 50, priority=1), backend(3, 0), backend(4), backend(5)),
        panic=Panic.ALL,
    ).ask(admin(4, Admin.DOWN), admin(5, Admin.DRAIN))
    found = one.at(0, **{f"web{number}": DOWN for number in range(1, 6)})
    assert one.panics()
    assert one.weights() == [100, 50, 0, 0, 0]
    assert [found[key(number)].packets for number in range(1, 6)] == [True, True] + [False] * 3
    assert "panic" in found[key(1)].why
    assert found[key(1)].state(DOWN, reachable=True) is State.DOWN
    found = one.at(1, web2=UP)
    assert not one.panics()
    assert not found[key(1)].packets


def test_panic_fallback_gets_all_new_flows_and_keeps_them() -> None:
    """It has no part before; afterwards the flows that it got go on there."""
    one = trial(backend(1), panic=Panic.FALLBACK)
    assert one.at(0)[SORRY.key].packets
    assert one.weights() == [100, 0]
    found = one.at(1, web1=DOWN)
    assert (one.panics(), one.weights()) == (True, [100, 100])
    assert not found[key(1)].packets
    found = one.at(2, web1=UP)
    assert (one.panics(), one.weights()) == (False, [100, 0])
    assert found[SORRY.key].packets


@pytest.mark.parametrize("policy", [Panic.NONE, Panic.ALL, Panic.FALLBACK])
def test_no_panic_while_somebody_is_healthy_or_unheard(policy: Panic) -> None:
    """One healthy backend is enough, and one that may turn out to be."""
    one = trial(backend(1), backend(2), panic=policy)
    one.at(0, web1=DOWN, web2=UP)
    assert not one.panics()
    one.at(1, web2=UNKNOWN)
    assert not one.panics()


@pytest.mark.parametrize("policy", Panic)
def test_all_taken_away_is_no_panic_but_for_a_fallback(policy: Panic) -> None:
    """Operators who drain everything mean it; a fallback is there for just that."""
    one = trial(backend(1), panic=policy).ask(admin(1, Admin.DRAIN))
    one.at(0)
    assert one.panics() == (policy is Panic.FALLBACK)
    assert one.weights() == ([0, 100] if policy is Panic.FALLBACK else [0])


def test_panic_is_said_in_words() -> None:
    """What becomes of the traffic is in the sentence."""
    services = {policy: config(pool(backend(1), panic=policy)).services[0] for policy in Panic}
    assert "packets are dropped" in panic_sentence(services[Panic.NONE])
    refusing = replace(services[Panic.NONE], no_backend=NoBackend.REJECT)
    assert "packets are refused" in panic_sentence(refusing)
    assert "as if they were up" in panic_sentence(services[Panic.ALL])
    assert "the fallback sorry" in panic_sentence(services[Panic.FALLBACK])


# Whatever happens.

HEALTHS = st.sampled_from(Health)
MOMENTS = st.lists(
    st.tuples(
        st.floats(0, 20),
        st.lists(HEALTHS, min_size=4, max_size=4),
        st.lists(st.sampled_from(Admin), min_size=4, max_size=4),
        st.lists(st.none() | st.integers(0, 300), min_size=4, max_size=4),
    ),
    min_size=1,
    max_size=8,
)
POOLS = st.builds(
    lambda weights, priorities, panic, slow, least, delay: pool(
        *(backend(n + 1, w, p) for n, (w, p) in enumerate(zip(weights, priorities, strict=True))),
        panic=panic,
        slow_start_s=slow,
        min_active=least,
        failback_delay_s=delay,
    ),
    st.lists(st.integers(0, 300), min_size=4, max_size=4),
    st.lists(st.integers(0, 2), min_size=4, max_size=4),
    st.sampled_from(Panic),
    st.sampled_from([0.0, 10.0]),
    st.integers(1, 3),
    st.sampled_from([0.0, 5.0]),
)


@given(POOLS, MOMENTS)
def test_at_every_moment_of_every_story(
    of: Pool,
    moments: list[tuple[float, list[Health], list[Admin], list[int | None]]],
) -> None:
    """What must never happen does not, and what must happen does."""
    one, now_s = trial(*of.backends), 0.0
    one.config = config(of)
    one.begin()
    for passed_s, healths, admins, weights in moments:
        now_s += passed_s
        one.overrides = Overrides().having(
            *(admin(n + 1, value) for n, value in enumerate(admins)),
            *(weight(n + 1, value) for n, value in enumerate(weights) if value is not None),
        )
        found = one.at(now_s, **{f"web{n + 1}": health for n, health in enumerate(healths)})
        asked = [
            told if told is not None else b.weight
            for told, b in zip(weights, of.backends, strict=True)
        ]
        wanted = [a is Admin.READY and w > 0 for a, w in zip(admins, asked, strict=True)]
        healthy = [w and h in {UP, Health.NONE} for w, h in zip(wanted, healths, strict=True)]
        for number in range(4):
            standing = found[key(number + 1)]
            assert 0 <= standing.weight <= asked[number]
            assert wanted[number] or not standing.weight
            assert standing.packets or not standing.weight or healths[number] in {DOWN, UNKNOWN}
            assert not (admins[number] is Admin.DOWN and standing.packets)
            if standing.packets and healths[number] is DOWN:
                assert one.panics()
                assert of.panic is Panic.ALL
        assert one.latest is not None
        assert not (one.panics() and any(healthy))
        taking = sum(found[key(n + 1)].weight > 0 for n in range(4) if healthy[n])
        assert taking >= min(of.min_active, sum(healthy))
        if of.slow_start_s == 0 and any(healthy):
            top = min(b.priority for b in of.backends)
            for number, each in enumerate(of.backends):
                if each.priority == top and healthy[number]:
                    assert found[each.key].weight == asked[number]
        assert (one.wake_s() or now_s) >= now_s
        (service,) = one.config.services
        again = stand_service(service, one.overrides, one._health_of, one.memory, one.now_s)
        assert again.backends == found
        assert again.memory == one.memory


def live(standings: Standings) -> set[BackendId]:
    """Return who may have packets."""
    found = standings.services.items()
    return {BackendId(key, backend) for key, one in found for backend in one.memory.served}


def test_services_stand_for_themselves() -> None:
    """The configuration for the datapath, who is live, memories and the next time of all."""
    of = pool(backend(1), backend(2), slow_start_s=10.0)
    both = config(of)
    other = replace(both.services[0], name=ServiceName("other"), port=81)
    both = replace(both, services=(both.services[0], other))
    asked = Overrides().having(admin(1, Admin.DOWN))
    found = Judge().stand(both, asked, lambda _service, _backend: UP, {}, 5.0)
    assert [s.name for s in found.config.services] == ["web", "other"]
    web, second = (service.key for service in both.services)
    assert live(found) == {BackendId(web, key(2)), *(BackendId(second, key(n)) for n in (1, 2))}
    assert set(found.memories) == {web, second}
    assert found.wake_s == 6.0


def test_what_was_said_is_remembered() -> None:
    """The very objects, until time, memory, service, health or an override is another."""
    both = config(pool(backend(1), backend(2), slow_start_s=10.0))
    health = {1: UP, 2: UP}
    judge = Judge()
    (web,) = (service.key for service in both.services)

    def ask(
        memories: Mapping[ServiceKey, Memory],
        now_s: float,
        of: Config = both,
        overrides: Overrides = NOTHING_ASKED,
    ) -> Standings:
        return judge.stand(
            of, overrides, lambda _, b: health[int(b.address) & 0xFF], memories, now_s
        )

    ramping = ask({}, 5.0)
    again = ask(ramping.memories, 5.5)
    assert again.services[web] is ramping.services[web]
    assert ask(again.memories, 6.0).services[web] is not ramping.services[web]
    settled = ask(ramping.memories, 50.0)
    assert ask(settled.memories, 60.0).services[web] is settled.services[web]
    health[1] = DOWN
    gone = ask(settled.memories, 60.0)
    assert live(gone) == {BackendId(web, key(2))}
    cut = ask(gone.memories, 60.0, overrides=Overrides().having(admin(2, Admin.DOWN)))
    assert live(cut) == set()
    assert live(ask(gone.memories, 60.0)) == {BackendId(web, key(2))}
    longer = config(pool(backend(1), backend(2), backend(2)))
    assert len(ask(gone.memories, 60.0, longer).config.services[0].pool.backends) == 3
