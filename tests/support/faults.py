"""What a fault costs: load before, during and after it, and the table of the results.

This module owns measuring, and the faults that take more than a line. It refuses to judge: who may
fail is for the test to say.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final

import numpy as np

from lb_xdp.core.desired import BackendId
from lb_xdp.core.model import BackendKey, Protocol, ServiceKey, XdpMode
from lb_xdp.core.plan import Observed
from lb_xdp.core.ring import maglev
from lb_xdp.core.settle import current_of
from lb_xdp.datapath.gateway import Datapath
from tests.support import pace
from tests.support.clients import Failure, Held, broken
from tests.support.lab import Host
from tests.support.scenes import Scene, Slots
from tests.support.servers import PYTHON, wait_for_port

HELD: Final = 64
_BEFORE_S = 0.3
_AFTER_S = 0.3
_TIMEOUT_S = 1.5


@dataclass(slots=True)
class Cost:
    """What one fault cost. ``harmed_at_s`` is on the clock of `time.monotonic`."""

    fault: str
    harmed_at_s: float = 0.0
    requests: int = 0
    failures: list[Failure] = field(default_factory=list)
    held: list[Held] = field(default_factory=list)
    slowest_s: float = 0.0

    @property
    def broken(self) -> list[Held]:
        """Return the connections that broke."""
        return broken(self.held)

    @property
    def last_failed_s(self) -> float:
        """Return how long after the harm the last request that failed was begun."""
        return max((one.at_s - self.harmed_at_s for one in self.failures), default=0.0)

    def failed_since(self, at_s: float) -> list[Failure]:
        """Return the requests that were begun after a moment, and failed."""
        return [one for one in self.failures if one.at_s > at_s]

    def owners(self, slots: Slots) -> set[str]:
        """Return whose slots failures and broken connections were on."""
        sources = {one.source for one in self.failures} | {one.source for one in self.broken}
        return set(map(slots.owner, sources))

    def row(self) -> str:
        """Return the fault's line of the table."""
        last = f"{self.last_failed_s * 1e3:.0f}" if self.failures else "-"
        return (
            f"| {self.fault} | {self.requests} | {len(self.failures)} | {last} "
            f"| {self.slowest_s * 1e3:.0f} | {len(self.held)} | {len(self.broken)} |"
        )


@contextmanager
def suffered(scene: Scene, fault: str, table: Path | None = None) -> Iterator[Cost]:
    """Have 1,000 new connections per second, and 64 held ones, while the block does its harm.

    The block's time begins when both have run for a while. The cost is complete after the block,
    and is appended to ``table``.
    """
    cost = Cost(fault)
    with scene.held(HELD, interval_s=0.05, timeout_s=_TIMEOUT_S) as held:
        load = scene.load(timeout_s=_TIMEOUT_S)
        time.sleep(pace.lasting(_BEFORE_S))
        cost.harmed_at_s = time.monotonic()
        yield cost
        time.sleep(pace.lasting(_AFTER_S))
        result = load.stop()
    cost.requests, cost.failures, cost.held = result.requests, result.failures, list(held)
    cost.slowest_s = result.slowest_s
    if table is not None:
        with table.open("a", encoding="utf-8") as file:
            file.write(cost.row() + "\n")


def went_down(scene: Scene, cost: Cost) -> set[str]:
    """Return the backends that the daemon took out of service since the harm."""
    since_timestamp_s = time.time() - (time.monotonic() - cost.harmed_at_s)
    lines = scene.gateway.command("events", "-o", "json", "-n", "1000").stdout.splitlines()
    events = [event for event in map(json.loads, lines) if event["kind"] == "backend_state"]
    return {
        event["backend"]
        for event in events
        if event.get("after") == "down" and event["timestamp_s"] >= since_timestamp_s
    }


def read_kernel(scene: Scene) -> Observed:
    """Read what the kernel holds of the scene's gateway, beside its daemon."""
    with scene.gateway.host.inside():
        datapath = Datapath.open(scene.gateway.name, XdpMode.AUTO)
        try:
            return datapath.observe()
        finally:
            datapath.close()


def assert_as_desired(scene: Scene) -> None:
    """Read the kernel, and compare it with what the file and the lab ask for, all being well."""
    config, observed = scene.config, read_kernel(scene)
    pool, service = config["pools"][0], config["services"][0]
    key = ServiceKey(IPv4Address(service["vip"]), service["port"], Protocol(service["protocol"]))
    weights, macs = {}, {}
    for backend in pool["backends"]:
        place = BackendKey(IPv4Address(backend["host"]), backend["port"])
        host = scene.backend(backend["name"])
        weights[place] = backend["weight"]
        macs[BackendId(key, place)] = bytes.fromhex(host.mac("eth0").replace(":", ""))
    assert observed.attached.keys() == set(config["gateway"]["interfaces"])
    assert not observed.outdated
    assert {one: record.mac for one, record in observed.records.items()} == macs
    assert all(record.up and not record.no_new for record in observed.records.values())
    ring = maglev(weights)
    indices = np.array([observed.indices[BackendId(key, place)] for place in ring.keys])
    assert np.array_equal(current_of(observed.rings[key].slots), indices[ring.owner])


@contextmanager
def mended(scene: Scene) -> Iterator[None]:
    """Begin and end with all backends up, and the kernel as the file asks."""
    assert_as_desired(scene)
    yield
    scene.gateway.wait_until_up("b1", "b2", "b3")
    assert_as_desired(scene)


@contextmanager
def blackholed(host: Host, port: int = 80) -> Iterator[None]:
    """Have a host take no packet for a port, and say nothing about it."""
    hook = "type filter hook prerouting priority -400;"
    text = f"table inet hole {{\nchain in {{\n{hook}\ntcp dport {port} drop\n}}\n}}\n"
    host.run("nft", "-f", "-", stdin=text)
    yield
    host.run("nft", "delete", "table", "inet", "hole")


class SlowDoor:
    """Makes new connections to a port of a host wait; those that are open go on as before.

    Slowness is in the server and not in the wire: this kernel has no netem.
    """

    _PORT = 8081

    def __init__(self, host: Host, port: int = 80) -> None:
        self._host = host
        self._port = port
        self._process = host.popen(
            PYTHON, "-m", "tests.support.slow", str(self._PORT), str(port),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        wait_for_port(host, self._PORT)

    def open(self) -> None:
        """Let new connections through this door from now on."""
        hook = "type nat hook prerouting priority -100;"
        rule = f"tcp dport {self._port} redirect to :{self._PORT}"
        text = f"table ip door {{\nchain in {{\n{hook}\n{rule}\n}}\n}}\n"
        self._host.run("nft", "-f", "-", stdin=text)

    def delay(self, seconds: float) -> None:
        """Have connections that come from now on wait that long for an answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{seconds}\n")
        self._process.stdin.flush()
        self._process.stdout.readline()

    def close(self) -> None:
        """Let new connections come in as always; those in the door are finished."""
        # Without the chain the kernel would translate nothing any more, of old connections either.
        self._host.run("nft", "flush", "chain", "ip", "door", "in")


@contextmanager
def full_disk(folder: Path) -> Iterator[Path]:
    """Have a folder be a disk with no room on it; yield the file that takes all of it."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "full", str(folder)], check=True)
    ballast = folder / "ballast"
    try:
        with suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        yield ballast
    finally:
        subprocess.run(["umount", str(folder)], check=True)
