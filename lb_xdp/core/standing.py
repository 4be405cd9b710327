"""What each backend is to get: from what was configured, what was asked, what was seen, and time.

Owns admin states, slow start, priorities and panic. The outcome for a service is a ``Standing`` of
each of its backends and the service as the datapath is to see it: the same types, with the weights
that count. "No new flows" is weight 0, "no packets at all" is not being ``live``. It refuses to
know why a backend cannot be reached (``desired``), and who lingers (``lingering``).

What was before matters for all that takes time; it is handed on as a ``Memory``, and whoever plans
without acting throws the new one away. Times are seconds of a monotonic clock.

Rules, where they meet:
 - "healthy" is: in the file with a weight, ready, and health up (or never probed). Unknown is not
   healthy, and not found to be ill either;
 - panic: there is nobody healthy at any priority, and nobody left to hear from;
 - what an operator took away (drain, maint, down, weight 0) stays away in a panic, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise

from lb_xdp.core.desired import BackendId
from lb_xdp.core.health import NO_ADVICE, Advice, is_live
from lb_xdp.core.model import (
    Backend,
    BackendKey,
    Config,
    NoBackend,
    Panic,
    Pool,
    Service,
    ServiceKey,
)
from lb_xdp.core.override import MAX_WEIGHT, Kind, Overrides, Subject
from lb_xdp.core.snapshot import Admin, Health, State

RAMP_STEPS = 10
"""A slow start goes through so many weights below the whole one, all for the same time."""

_FALLBACK_WEIGHT = 100

HealthOf = Callable[[Service, Backend], Health]
AdviceOf = Callable[[Service, Backend], Advice]


def no_advice(_service: Service, _backend: Backend) -> Advice:
    """Return no advice: backends that nobody asks have none."""
    return NO_ADVICE


@dataclass(frozen=True, slots=True)
class Standing:
    """What one backend of one service is to get.

    ``configured_weight`` is the file's, ``weight`` the one that counts. ``packets``: it may have
    some, were it only those of flows that it has. ``why`` says in words what is special about it.
    """

    admin: Admin
    configured_weight: int
    weight: int
    packets: bool
    drains: bool
    why: str = ""

    def state(self, health: Health, *, reachable: bool) -> State:
        """Return what counts for traffic."""
        if self.admin is Admin.DOWN:
            return State.DOWN
        if self.admin is Admin.MAINT:
            return State.MAINT
        if health is Health.UNKNOWN:
            return State.UNKNOWN
        if not reachable or health is Health.DOWN:
            return State.DOWN
        return State.DRAIN if self.drains else State.UP


@dataclass(frozen=True, slots=True)
class Memory:
    """What has to be known of a service's past.

    ``fresh`` are backends that were there when the daemon started and have not been decided about:
    their first success is no recovery. ``healthy`` could take new flows, ``served`` had packets.
    ``ramps`` says since when a backend has its slow start. ``standby`` are the priorities that have
    joined, and since when they need not have: None while they are needed.
    """

    fresh: frozenset[BackendKey] = frozenset()
    healthy: frozenset[BackendKey] = frozenset()
    served: frozenset[BackendKey] = frozenset()
    ramps: Mapping[BackendKey, float] = field(default_factory=dict)
    standby: Mapping[int, float | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ServiceStanding:
    """The outcome for a service. ``service`` has the weights that count.

    ``priority`` is the lowest one (the largest number) that takes new flows. ``wake_s`` is when
    something changes though nothing happens, None for never.
    """

    service: Service
    backends: Mapping[BackendKey, Standing]
    panic: bool
    priority: int
    memory: Memory
    wake_s: float | None


def at_start(config: Config, found: frozenset[BackendId] | None) -> dict[ServiceKey, Memory]:
    """Return the memories of a daemon that has just started.

    ``found`` are the backends that the kernel knows from an earlier life, None where there is none:
    what came to the file since then is an addition, everything else is not.
    """
    return {
        service.key: Memory(
            fresh=frozenset(
                backend.key
                for backend in service.pool.backends
                if found is None or BackendId(service.key, backend.key) in found
            )
        )
        for service in config.services
    }


def stand_service(
    service: Service,
    overrides: Overrides,
    health_of: HealthOf,
    memory: Memory,
    now_s: float,
    *,
    advice_of: AdviceOf = no_advice,
) -> ServiceStanding:
    """Return what the backends of one service are to get."""
    members = [
        _advised(_member(service, backend, overrides, health_of), advice_of(service, backend))
        for backend in service.pool.backends
    ]
    healthy = frozenset(m.key for m in members if m.takes_flows and is_live(m.health))
    ramps = _ramps(service.pool, healthy, memory, now_s)
    standby = _standby(service.pool, members, healthy, memory, now_s)
    panic = _panics(service.pool, members, healthy)
    joined = max(standby, default=_top(members))
    standings = {
        m.key: _standing(m, service.pool, memory, ramps.get(m.key), joined, panic, now_s)
        for m in members
    }
    return ServiceStanding(
        _with_weights(service, standings),
        standings,
        panic,
        joined,
        Memory(
            fresh=frozenset(m.key for m in members if m.key in memory.fresh and m.undecided),
            healthy=healthy,
            served=frozenset(key for key, standing in standings.items() if standing.packets),
            ramps=ramps,
            standby=standby,
        ),
        _wake_s(service.pool, ramps, standby, now_s),
    )


@dataclass(frozen=True, slots=True)
class _Member:
    """A backend with all that is known of it. ``weight`` is the asked-for one, else the file's.

    ``ordered``: an operator gave it its admin state.
    """

    backend: Backend
    key: BackendKey
    admin: Admin
    asked: str
    weight: int
    health: Health
    ordered: bool = False

    @property
    def takes_flows(self) -> bool:
        """Say whether it may have new flows as far as operators are concerned."""
        return self.admin is Admin.READY and self.weight > 0 and not self.extra

    @property
    def extra(self) -> bool:
        """Say whether it is in no pool of the file."""
        return self.backend.fallback or self.backend.left is not None

    @property
    def undecided(self) -> bool:
        """Say whether no probe has told anything of it yet."""
        return self.health is Health.UNKNOWN and self.admin is Admin.READY


def _member(
    service: Service, backend: Backend, overrides: Overrides, health_of: HealthOf
) -> _Member:
    admin, weight, asked, ordered = Admin.READY, backend.weight, "", False
    if overrides:
        ordered = Subject(service.name, backend.name, Kind.ADMIN) in overrides.held
        admin = overrides.admin(service.name, backend.name)
        asked = "; ".join(map(str, overrides.about(service.name, backend.name)))
        told = overrides.weight(service.name, backend.name)
        if told is not None and not backend.fallback and backend.left is None:
            weight = told
    health = health_of(service, backend)
    return _Member(backend, backend.key, admin, asked, weight, health, ordered)


def _advised(member: _Member, advice: Advice) -> _Member:
    """Return a backend with what its agent asks for, where no operator asked for something else.

    A share is one of the weight that holds otherwise; of a weight that is not 0, it is 0 only where
    the agent says so.
    """
    if advice == NO_ADVICE or member.extra:
        return member
    admin, weight, words = member.admin, member.weight, []
    if advice.admin is not None and not member.ordered:
        admin = advice.admin
        words.append(f"{admin} by its agent")
    if advice.weight_share is not None and weight:
        least = 1 if advice.weight_share else 0
        weight = min(max(round(weight * advice.weight_share), least), MAX_WEIGHT)
        words.append(f"{advice.weight_share:.0%} by its agent")
    asked = "; ".join(filter(None, [member.asked, *words]))
    return replace(member, admin=admin, weight=weight, asked=asked)


def _ramps(
    pool: Pool, healthy: frozenset[BackendKey], memory: Memory, now_s: float
) -> dict[BackendKey, float]:
    """Return since when each backend that is on a slow start has been on it."""
    ramps = {}
    for key in healthy if pool.slow_start_s else ():
        if key in memory.healthy:
            since_s = memory.ramps.get(key)
        else:
            since_s = None if key in memory.fresh else now_s
        if since_s is not None and now_s < since_s + pool.slow_start_s:
            ramps[key] = since_s
    return ramps


def _levels(members: list[_Member]) -> list[int]:
    return sorted({m.backend.priority for m in members if not m.extra})


def _top(members: list[_Member]) -> int:
    return min(_levels(members), default=0)


def _standby(
    pool: Pool,
    members: list[_Member],
    healthy: frozenset[BackendKey],
    memory: Memory,
    now_s: float,
) -> dict[int, float | None]:
    """Return the priorities that have joined the highest one, and since when they need not.

    One joins at once when too few above it are healthy, and leaves when that has been over for the
    pool's delay.
    """
    standby: dict[int, float | None] = {}
    above = 0
    for upper, level in pairwise(_levels(members)):
        above += sum(m.backend.priority == upper and m.key in healthy for m in members)
        if above < pool.min_active:
            standby[level] = None
        elif level in memory.standby:
            since_s = memory.standby[level]
            since_s = now_s if since_s is None else since_s
            if now_s < since_s + pool.failback_delay_s:
                standby[level] = since_s
    return standby


def _panics(pool: Pool, members: list[_Member], healthy: frozenset[BackendKey]) -> bool:
    """Say whether nobody can take the service's new flows, and it is not known who could.

    Where operators took every backend away, only a fallback has to do with it.
    """
    wanted = [m for m in members if m.takes_flows]
    if healthy or any(m.health is Health.UNKNOWN for m in wanted):
        return False
    return bool(wanted) or pool.panic is Panic.FALLBACK


def _standing(  # noqa: PLR0917 - all that decides, in one place
    member: _Member,
    pool: Pool,
    memory: Memory,
    ramp_s: float | None,
    joined: int,
    panic: bool,  # noqa: FBT001 - a fact beside the others, not a switch
    now_s: float,
) -> Standing:
    if member.backend.fallback:
        return _fallback(pool, panic=panic)
    packets, weight, why = _by_health(member, memory), member.weight, member.asked
    if member.takes_flows and panic:
        packets = packets or pool.panic is Panic.ALL
        why = "panic: gets traffic since nobody is healthy" if packets else why
    elif not member.takes_flows or (packets and member.health is Health.UNKNOWN):
        weight = 0
    elif member.backend.priority > joined:
        weight, why = 0, _also(why, f"stands by with priority {member.backend.priority}")
    elif ramp_s is not None:
        weight = _ramped(weight, now_s - ramp_s, pool.slow_start_s)
        why = _also(why, f"slow start: {weight} of {member.weight}")
    drains = member.admin is Admin.DRAIN or member.backend.left is not None or not member.weight
    return Standing(member.admin, member.backend.weight, weight, packets, drains, why)


def _fallback(pool: Pool, *, panic: bool) -> Standing:
    """Return the standing of a fallback: it keeps the flows that it got in a panic."""
    used = panic and pool.panic is Panic.FALLBACK
    why = "panic: gets all new flows" if used else "fallback: new flows only in a panic"
    weight = _FALLBACK_WEIGHT if used else 0
    return Standing(Admin.READY, weight, weight, packets=True, drains=False, why=why)


def _by_health(member: _Member, memory: Memory) -> bool:
    """Say whether a backend may have packets, panic aside.

    One that is to be probed again after a time without keeps the flows that it has meanwhile.
    """
    if member.admin is Admin.DOWN:
        return False
    if member.health is Health.UNKNOWN:
        return member.key in memory.served
    return is_live(member.health)


def _ramped(weight: int, for_s: float, slow_start_s: float) -> int:
    """Return the weight of a backend that has been coming back for so long."""
    step = min(int(for_s / slow_start_s * RAMP_STEPS), RAMP_STEPS)
    return max(weight * (step + 1) // (RAMP_STEPS + 1), 1)


def _also(first: str, second: str) -> str:
    return f"{first}; {second}" if first else second


def _with_weights(service: Service, standings: Mapping[BackendKey, Standing]) -> Service:
    """Return the service with the weights that count; itself where these are the file's."""
    pool = service.pool
    if all(standings[b.key].weight == b.weight for b in pool.backends):
        return service
    backends = tuple(replace(b, weight=standings[b.key].weight) for b in pool.backends)
    return replace(service, pool=replace(pool, backends=backends))


def _wake_s(
    pool: Pool,
    ramps: Mapping[BackendKey, float],
    standby: Mapping[int, float | None],
    now_s: float,
) -> float | None:
    """Return when the next step of a ramp, or the end of a delay, is due."""
    step_s = pool.slow_start_s / RAMP_STEPS
    begun = ((since_s, int((now_s - since_s) / step_s)) for since_s in ramps.values())
    ends_s = [since_s + (steps + 1) * step_s for since_s, steps in begun]
    waiting = (since_s for since_s in standby.values() if since_s is not None)
    ends_s += [since_s + pool.failback_delay_s for since_s in waiting]
    return min(ends_s, default=None)


def panic_sentence(service: Service) -> str:
    """Say what becomes of the traffic of a service that has no healthy backend."""
    head = "no backend is healthy"
    pool = service.pool
    if pool.panic is Panic.ALL:
        return f"{head}: traffic goes to all that are not taken away, as if they were up"
    if pool.panic is Panic.FALLBACK and pool.fallback is not None:
        return f"{head}: new flows go to the fallback {pool.fallback.name}"
    fate = "refused" if service.no_backend is NoBackend.REJECT else "dropped"
    return f"{head}: packets are {fate}"
