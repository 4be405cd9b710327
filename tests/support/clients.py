"""Clients for the lab: what a test starts on the client host, and the results it gets back.

`short_connections` opens a new connection for each request and tells which failed and when;
`HeldConnections` keeps connections open, asks on each at an interval, and tells which broke. Both
run in processes of their own (`load` is their loop), so that a test can do harm meanwhile. This
module refuses to judge a result.
"""

from __future__ import annotations

import collections
import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.support import pace
from tests.support.lab import Host

_PYTHON = sys.executable


@dataclass(frozen=True, slots=True)
class Failure:
    """One request that got no right answer.

    ``at_s`` is when it was begun, on the clock of `time.monotonic`, which all processes share.
    """

    at_s: float
    took_s: float
    error: str
    source: str


@dataclass(slots=True)
class ShortResult:
    """What became of many short connections."""

    requests: int = 0
    backends: collections.Counter[str] = field(default_factory=collections.Counter)
    failures: list[Failure] = field(default_factory=list)
    elapsed_s: float = 0.0
    slowest_s: float = 0.0

    @property
    def answered(self) -> int:
        """Return how many requests got a right answer."""
        return self.backends.total()


class ShortConnections:
    """Short HTTP connections that are under way, from several processes."""

    def __init__(self, processes: Sequence[subprocess.Popen[str]], host: Host) -> None:
        self._processes = processes
        self._host = host

    def wait(self, *, timeout_s: float = 170) -> ShortResult:
        """Return the result when all requests are done."""
        deadline = time.monotonic() + pace.lasting(timeout_s)
        result = ShortResult()
        for process in self._processes:
            output, _ = process.communicate(timeout=max(0.1, deadline - time.monotonic()))
            if process.returncode != 0:
                raise ChildProcessError(f"a client on {self._host.name} failed: see its stderr")
            _add(result, json.loads(output))
        result.failures.sort(key=lambda failure: failure.at_s)
        return result

    def stop(self) -> ShortResult:
        """Begin no more requests, and return the result of those begun."""
        for process in self._processes:
            process.send_signal(signal.SIGTERM)
        return self.wait()


def short_connections(
    host: Host,
    address: str,
    port: int = 80,
    *,
    count: int = 0,
    rate_per_s: float = 0,
    seconds: float = 0,
    sources: Sequence[str] = (),
    first_port: int = 0,
    path: str = "/",
    timeout_s: float = 3,
    processes: int = 2,
) -> ShortConnections:
    """Start one HTTP request for each new connection, each from a source port of its own.

    Ends after ``count`` requests or ``seconds``, whichever comes first, 0 being no limit. With
    ``rate_per_s`` requests begin at that pace, whether or not earlier ones are answered; with 0 as
    fast as 64 at a time allow. ``sources`` are client addresses to take turns with. The kernel
    chooses the ports; with ``first_port`` they count up from there on each address, and the same
    call makes the same 5-tuples again.
    """
    started = []
    for number in range(processes):
        share = count // processes + (number < count % processes)
        options = {
            "address": address,
            "port": port,
            "count": share if count else 0,
            "rate_per_s": rate_per_s / processes,
            "seconds": seconds,
            "sources": list(sources) or [""],
            "first_port": first_port,
            "number": number,
            "processes": processes,
            "path": path,
            "timeout_s": pace.lasting(timeout_s),
        }
        started.append(_start(host, "short", options))
    return ShortConnections(started, host)


@dataclass(frozen=True, slots=True)
class Held:
    """One connection that was held open."""

    source: str
    backend: str
    requests: int
    broken_at_s: float | None
    error: str


def broken(held: Sequence[Held]) -> list[Held]:
    """Return the connections that broke."""
    return [one for one in held if one.broken_at_s is not None]


class HeldConnections:
    """Keep-alive HTTP connections, with a request on each at an interval.

    ``idle`` of them are silent instead, until they are asked once more before they are closed.
    """

    def __init__(
        self,
        host: Host,
        address: str,
        port: int = 80,
        *,
        count: int = 50,
        idle: int = 0,
        interval_s: float = 0.1,
        sources: Sequence[str] = (),
        timeout_s: float = 3,
    ) -> None:
        self._host = host
        options = {
            "address": address,
            "port": port,
            "count": count,
            "idle": idle,
            "interval_s": pace.lasting(interval_s),
            "sources": list(sources) or [""],
            "timeout_s": pace.lasting(timeout_s),
        }
        self._process = _start(host, "held", options)
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "all open\n":
            raise ChildProcessError(f"cannot open {count} connections from {host.name}")

    def stop(self) -> list[Held]:
        """Close all, and return what became of each."""
        self._process.send_signal(signal.SIGTERM)
        output, _ = self._process.communicate(timeout=pace.lasting(30))
        return [Held(**entry) for entry in json.loads(output)]


def _start(host: Host, what: str, options: dict[str, Any]) -> subprocess.Popen[str]:
    arguments = ["-m", "tests.support.load", what, json.dumps(options)]
    return host.popen(_PYTHON, *arguments, stdout=subprocess.PIPE)


def _add(result: ShortResult, part: dict[str, Any]) -> None:
    result.requests += part["requests"]
    result.backends.update(part["backends"])
    result.failures.extend(Failure(**entry) for entry in part["failures"])
    result.elapsed_s = max(result.elapsed_s, part["elapsed_s"])
    result.slowest_s = max(result.slowest_s, part["slowest_s"])
