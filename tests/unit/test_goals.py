"""What is remembered of goals, standings and health is what would come out anew, at every step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from random import Random

import pytest

from lb_xdp.core.desired import BackendId, BackendRecord, Desired
from lb_xdp.core.goals import Goals, desire
from lb_xdp.core.health import Advice, ProbeResult
from lb_xdp.core.judge import Judge, Standings
from lb_xdp.core.model import Backend, CheckKind, Config, Damping, HealthCheck, Mode, Service
from lb_xdp.core.override import Kind, Override, Overrides, Subject
from lb_xdp.core.rings import Rings
from lb_xdp.core.snapshot import Admin, Health
from lb_xdp.core.targets import checks, target_of
from lb_xdp.core.topology import Interface
from lb_xdp.core.vitals import Vitals
from tests.support.configs import Step, Walk

_STEPS = 60
_NOTHING_ASKED = Overrides()
_QUICK = HealthCheck(CheckKind.TCP, rise=1, fall=1)
_INTERFACES = [Interface(f"eth{n}", n, bytes([2, 0, 0, 0, 0, n]), 1500, up=True) for n in (1, 2)]


def steps(seed: int) -> Iterator[Step]:
    """Yield a walk in which services share backends now and then."""
    random = Random(seed)
    for step in Walk(seed, _INTERFACES, era_steps=15, structural=0.3).steps(_STEPS):
        first, *others = step.config.services
        moved = (_joined(first, one) if random.random() < 0.2 else one for one in others)
        services = (first, *moved)
        config = replace(step.config, services=services)
        topology = step.topology if random.random() < 0.5 else replace(step.topology)
        live = frozenset(i for i in _all(config) if random.random() < 0.8)
        yield Step(config, topology, live, step.note)


def _joined(first: Service, other: Service) -> Service:
    """Return the other service with backends of the first, where that is allowed."""
    if first.mode is Mode.NAT and other.mode is Mode.NAT and first.vip.version == other.vip.version:
        return replace(other, pool=first.pool)
    return other


def _all(config: Config) -> list[BackendId]:
    return sorted({BackendId(s.key, b.key) for s, b in config.backends()})


def standings(step: Step, judge: Judge) -> Standings:
    """Return standings in which the live backends of a step have packets."""

    def health_of(service: Service, backend: Backend) -> Health:
        return Health.UP if BackendId(service.key, backend.key) in step.live else Health.DOWN

    return judge.stand(step.config, _NOTHING_ASKED, health_of, {}, 0.0)


def same(one: Desired, other: Desired) -> bool:
    """Say whether two goals are equal: rings by what they follow from."""
    causes = [
        {key: (ring.keys, ring.cause) for key, ring in goal.rings.items()} for goal in (one, other)
    ]
    return causes[0] == causes[1] and replace(one, rings={}) == replace(other, rings={})


@pytest.mark.parametrize("seed", range(8))
def test_a_remembered_goal_is_the_one_that_would_be_made(seed: int) -> None:
    """From step to step and back, whatever changes or is forgotten on the way."""
    random, rings = Random(seed), Rings()
    goals, judge = Goals(1, rings.ring_of), Judge()
    held: dict[BackendId, BackendRecord] = {}
    before: Step | None = None
    for step in steps(seed):
        for one in filter(None, (step, before, step)):
            found = standings(one, judge)
            wanted = found.config, one.topology
            goal = goals.of(found, one.topology, held)
            live = {BackendId(k, b) for k, s in found.services.items() for b in s.memory.served}
            assert same(goal, desire(*wanted, live, Rings().ring_of, build=1, held=held))
            if random.random() < 0.3:
                goals.forget_former()
            assert goals.of(found, one.topology, held) is goal
        held = dict(goal.records) if random.random() < 0.7 else held
        before = step


def test_another_topology_that_says_the_same_is_the_same_goal() -> None:
    """A neighbour's word that changes nothing makes no other goal."""
    goals = Goals(1, Rings().ring_of)
    step = next(steps(1))
    found = standings(step, Judge())
    goal = goals.of(found, step.topology, {})
    again = replace(step.topology, next_hops=dict(step.topology.next_hops))
    assert goals.of(found, again, {}) is goal


@pytest.mark.parametrize("seed", range(8))
def test_remembered_health_is_the_one_that_would_be_asked_for(seed: int) -> None:
    """Standings by stamps are those of a judge that asks everybody, whatever is learnt or asked."""
    random, vitals, judge, now_s = Random(seed), Vitals(), Judge(), 0.0
    asked = _NOTHING_ASKED
    damping = Damping(changes=2, within_s=60.0, hold_s=5.0, max_hold_s=20.0)
    for step in steps(seed):
        config = step.config
        if random.random() < 0.5:
            services = [
                replace(s, pool=replace(s.pool, damping=damping, health=_QUICK))
                for s in config.services
            ]
            config = replace(config, services=tuple(services))
        vitals.consider(config, {}, now_s)
        if random.random() < 0.9:
            vitals.adopt(config, now_s)
        for _ in range(20):
            now_s += random.choice((0.1, 1.0, 6.0))
            _happen(vitals, config, random, now_s)
            vitals.release(now_s)
            asked = _asked(asked, config, random) if random.random() < 0.2 else asked
            _compare(vitals, config, asked, judge, now_s)
        vitals.adopt(config, now_s)


def _happen(vitals: Vitals, config: Config, random: Random, now_s: float) -> None:
    """Let something be learnt about somebody's health."""
    targets = sorted(checks(config))[:2]
    target = random.choice(targets)
    match random.randrange(4):
        case 0:
            vitals.eject(dict.fromkeys(random.sample(targets, random.randint(0, 1)), "why"), now_s)
        case 1 if vitals.check_of(target) is checks(config)[target]:
            vitals.begin_again([target], now_s)
        case _:
            advice = random.choice((Advice(), Advice(), Advice(0.5), Advice(admin=Admin.DRAIN)))
            result = ProbeResult(random.random() < 0.5, "said", 0.01, now_s, advice=advice)
            vitals.take(target, result, now_s)


def _asked(before: Overrides, config: Config, random: Random) -> Overrides:
    """Return what is asked for once an operator has asked for one thing more, or taken it back."""
    service = random.choice(config.services[:2])
    backend = random.choice(service.pool.backends)
    kind, value = random.choice(((Kind.ADMIN, "drain"), (Kind.ADMIN, "ready"), (Kind.WEIGHT, "7")))
    subject = Subject(service.name, backend.name, kind)
    if random.random() < 0.3:
        return before.lacking(subject)
    return before.having(Override(subject, value, "root", "", random.random()))


def _compare(vitals: Vitals, config: Config, asked: Overrides, judge: Judge, now_s: float) -> None:
    def health_of(service: Service, backend: Backend) -> Health:
        return vitals.state_of(target_of(service, backend), now_s).health

    def advice_of(service: Service, backend: Backend) -> Advice:
        return vitals.advice_of(target_of(service, backend))

    ask = partial(
        Judge.stand, config=config, overrides=asked, health_of=health_of, memories={},
        now_s=now_s, advice_of=advice_of,
    )  # fmt: skip
    stamped, fresh = ask(judge, stamp_of=vitals.stamp_of), ask(Judge())
    assert stamped == fresh
