"""Asks DNS for the addresses of backends, again and again.

Owns when a question is asked and what its answer was called. Refuses to know what an answer means:
what is believed of it is ``lb_xdp.core.names``'. dnspython asks, which tells the TTL, as the
system's resolver (getaddrinfo) does not; so /etc/hosts has no say.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from ipaddress import ip_address
from types import TracebackType
from typing import Final, Self

import dns.asyncresolver
import dns.exception
import dns.rdatatype
import dns.resolver

from lb_xdp.core.model import IPV6, Address, Resolving
from lb_xdp.core.names import Question

SHORTEST_S: Final = 1.0
"""The shortest time from one question to the next, whatever the TTL."""

_PATIENCE_S: Final = 5.0  # for one question, servers asked in turn
_AT_ONCE: Final = 32  # questions under way
_TYPES: Final = {4: dns.rdatatype.A, 6: dns.rdatatype.AAAA}


@dataclass(frozen=True, slots=True)
class Answer:
    """What a question brought. Without addresses, ``failure`` says why.

    ``ttl_s`` is for how long the answer holds, by whoever gave it; ``server`` is that one.
    """

    addresses: frozenset[Address] = frozenset()
    ttl_s: float = 0.0
    server: str = ""
    failure: str = ""


class Resolver:
    """Asks a set of questions until closed. Use as an async context manager.

    ``on_answer`` is called in the event loop with every answer.
    """

    def __init__(self, on_answer: Callable[[Question, Answer], None]) -> None:
        self._on_answer = on_answer
        self._how = Resolving()
        self._group = asyncio.TaskGroup()
        self._tasks: dict[Question, asyncio.Task[None]] = {}
        self._answered: dict[Question, asyncio.Event] = {}
        self._turns = asyncio.Semaphore(_AT_ONCE)

    @property
    def how(self) -> Resolving:
        """How questions are asked now."""
        return self._how

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop asking."""
        self.set_questions((), self._how)
        # The group would wrap what the block raised; it needs to see only a cancellation.
        if kind is not None and issubclass(kind, asyncio.CancelledError):
            await self._group.__aexit__(kind, error, trace)
        else:
            await self._group.__aexit__(None, None, None)

    def set_questions(self, questions: Collection[Question], how: Resolving) -> None:
        """Ask exactly these from now on; those that are new, at once."""
        wanted = set(questions)
        gone = set(self._tasks) if how != self._how else set(self._tasks) - wanted
        for question in gone:
            self._tasks.pop(question).cancel()
            del self._answered[question]
        self._how = how
        for question in sorted(wanted - set(self._tasks)):
            self._answered[question] = asyncio.Event()
            self._tasks[question] = self._group.create_task(
                self._repeat(question, how), name=f"resolve {question}"
            )

    async def settle(self, timeout_s: float) -> None:
        """Wait until every question has been answered or has failed once, at most so long."""
        waits = [asyncio.ensure_future(event.wait()) for event in self._answered.values()]
        if waits:
            _, late = await asyncio.wait(waits, timeout=timeout_s)
            for wait in late:
                wait.cancel()

    async def _repeat(self, question: Question, how: Resolving) -> None:
        pause_s = SHORTEST_S
        while True:
            async with self._turns:
                answer = await _ask(question, how)
            self._on_answer(question, answer)
            self._answered[question].set()
            if answer.addresses:
                pause_s = SHORTEST_S
                wait_s = max(min(answer.ttl_s, how.interval_s), SHORTEST_S)
            else:
                # Soon again, then ever more rarely: a server that is back is found quickly.
                wait_s = min(pause_s, max(how.interval_s, SHORTEST_S))
                pause_s *= 2
            await asyncio.sleep(wait_s)


async def _ask(question: Question, how: Resolving) -> Answer:
    resolver = dns.asyncresolver.Resolver(configure=False)
    try:
        if how.server is None:
            resolver.read_resolv_conf("/etc/resolv.conf")  # anew: it may have changed
        else:
            resolver.nameservers = [str(how.server)]
        answer = await resolver.resolve(
            question.host, _TYPES[question.family], lifetime=_PATIENCE_S, raise_on_no_answer=False
        )
    except (dns.exception.DNSException, OSError) as error:
        return Answer(failure=_words(error, how))
    if answer.rrset is None:
        return Answer(failure=f"{_who(how)} knows no IPv{question.family} address")
    addresses = frozenset(ip_address(str(record.address)) for record in answer.rrset)
    ttl_s = float(answer.chaining_result.minimum_ttl)
    return Answer(addresses, ttl_s, str(answer.nameserver or ""))


def _who(how: Resolving) -> str:
    if how.server is None:
        return "the server in /etc/resolv.conf"
    return f"[{how.server}]" if how.server.version == IPV6 else str(how.server)


def _words(error: Exception, how: Resolving) -> str:
    match error:
        case dns.resolver.NXDOMAIN():
            return f"{_who(how)} says that there is no such name"
        case dns.resolver.LifetimeTimeout():
            return f"no answer from {_who(how)} within {_PATIENCE_S:g} s"
        case dns.resolver.NoNameservers():
            return f"{_who(how)} cannot answer"
        case dns.resolver.NoResolverConfiguration():
            return "no name server in /etc/resolv.conf; give gateway.dns.resolver"
        case OSError():
            return f"{_who(how)}: {os.strerror(error.errno or 0).lower()}"
    return f"{_who(how)}: {error}"
