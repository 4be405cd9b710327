"""Backends by name: from what DNS answers to the addresses that get traffic.

Owns what an answer changes, how much of a change is believed at once, and the configuration with a
backend for each address. Refuses to ask (``lb_xdp.resolver``), to know the time, and to keep
anything on a disk (``lb_xdp.address_book``).

DNS is easily wrong in ways that a server's own health check is not: a zone file cut short, a
resolver that knows half of the truth. So additions count at once, since a new backend has to pass
its probes, and losses only so far: an empty answer takes nothing away, and one that takes away more
than ``max_change`` of the addresses must come several times in a row.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Final, NamedTuple

from lb_xdp.core.model import (
    IPV4,
    IPV6,
    Address,
    Backend,
    BackendName,
    Config,
    Named,
    Resolving,
    Service,
)

MAX_ADDRESSES: Final = 64
"""How many addresses a name may have, of each IP version; the lowest count where there are more."""


class Question(NamedTuple):
    """What is asked: the addresses of a host, of one IP version."""

    host: str
    family: int

    def __str__(self) -> str:
        """Return ``web.internal.example (IPv4)``."""
        return f"{self.host} (IPv{self.family})"


class Change(Enum):
    """What an answer did."""

    NONE = "none"
    TAKEN = "taken"
    HELD_BACK = "held back"


_Addresses = frozenset[Address]


@dataclass(frozen=True, slots=True)
class Held:
    """What is known of one question.

    ``accepted`` is the last good answer. ``doubted`` is one that takes away too much, and ``times``
    how often it came in a row; what it adds counts meanwhile.
    """

    accepted: _Addresses = frozenset()
    doubted: _Addresses = frozenset()
    times: int = 0

    @property
    def addresses(self) -> _Addresses:
        """Return the addresses that count."""
        return self.accepted | self.doubted


@dataclass(frozen=True, slots=True)
class Names:
    """All answers: a value, changed by making another."""

    held: Mapping[Question, Held] = field(default_factory=dict)

    def addresses(self, question: Question) -> _Addresses:
        """Return what is known of a question; nothing where it was never answered."""
        return self.held.get(question, Held()).addresses

    def with_answer(
        self, question: Question, answer: Collection[Address], how: Resolving
    ) -> tuple[Names, Change]:
        """Take in an answer with at least one address; say what it did."""
        before = self.held.get(question, Held())
        after, change = _judge(before, frozenset(answer), how)
        return Names({**self.held, question: after}), change

    def only(self, questions: Collection[Question]) -> Names:
        """Return these without what nobody asks any more."""
        return Names({q: held for q, held in self.held.items() if q in questions})


def _judge(before: Held, answer: _Addresses, how: Resolving) -> tuple[Held, Change]:
    vanished = before.accepted - answer
    times = before.times + 1 if answer == before.doubted else 1
    if len(vanished) > how.max_change * len(before.accepted) and times < how.confirm:
        return Held(before.accepted, answer, times), Change.HELD_BACK
    after = Held(answer)
    return after, Change.NONE if before.addresses == answer else Change.TAKEN


def families_of(service: Service) -> tuple[int, ...]:
    """Return the IP versions that a service's backends may have, the best one first."""
    own = service.vip.version
    other = IPV6 if own == IPV4 else IPV4
    return (own, other) if service.mode.tunnel else (own,)


def questions(config: Config) -> frozenset[Question]:
    """Return everything that a configuration needs to be asked."""
    return frozenset(
        Question(named.host, family)
        for service in config.services
        for named in service.pool.named
        for family in families_of(service)
    )


def resolved(config: Config, names: Names) -> Config:
    """Return the configuration with a backend for each address of its names.

    A service's backends have the IP version of its VIP; in a tunnel the other one where the name
    has no address of that. An address of the gateway's own meaning (a VIP, a source of fullnat) is
    left out: traffic would come back.
    """
    ours = {service.vip for service in config.services} | {*config.gateway.snat_addresses}
    services = tuple(
        _resolved(service, names, ours) if service.pool.named else service
        for service in config.services
    )
    return replace(config, services=services)


def _resolved(service: Service, names: Names, ours: Collection[Address]) -> Service:
    pool = service.pool
    taken = {backend.key for backend in pool.backends}
    backends = list(pool.backends)
    inserted = 0
    for named in pool.named:
        found = [b for b in _backends_of(named, service, names, ours) if b.key not in taken]
        taken.update(backend.key for backend in found)
        at = named.position + inserted
        backends[at:at] = found
        inserted += len(found)
    return replace(service, pool=replace(pool, backends=tuple(backends)))


def _backends_of(
    named: Named, service: Service, names: Names, ours: Collection[Address]
) -> Iterator[Backend]:
    template = named.template
    known = (names.addresses(Question(named.host, family)) for family in families_of(service))
    addresses = sorted(next(filter(None, known), frozenset()) - set(ours), key=int)
    for address in addresses:
        name = template.name if len(addresses) == 1 else f"{template.name}@{address}"
        yield replace(template, name=BackendName(name), address=address)


def unanswered(config: Config, names: Names) -> list[str]:
    """Return the hosts that some service needs and knows no address of."""
    return sorted(
        {
            named.host
            for service in config.services
            for named in service.pool.named
            if not any(names.addresses(Question(named.host, f)) for f in families_of(service))
        }
    )


def total_backends(config: Config) -> int:
    """Return the backends, counted once for each service that they answer for."""
    return sum(len(service.pool.backends) for service in config.services)
