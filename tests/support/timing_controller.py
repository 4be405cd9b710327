"""Seconds and megabytes of the controller: what ``scripts/bench --controller`` shows.

Owns a gateway of 1,000 services with ten probed backends each, the real daemon on it, and what is
timed: first start, restart with pins, a reload that changes one backend, status, memory. It refuses
to judge: docs/performance.md has the goals.

Servers are sockets that listen: the kernel answers tcp probes for them, so what is measured is not
their work. The program is compiled anew at each first start.
"""

from __future__ import annotations

import gc
import json
import os
import re
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from rich.table import Table

from lb_xdp.core.model import BackendKey
from lb_xdp.core.ring import maglev
from lb_xdp.native import fastest_fill
from tests.support import pace
from tests.support.gateway import COMMAND
from tests.support.lab import Lab
from tests.support.topologies import Network, two_armed

SERVICES, BACKENDS = 1000, 10
_SERVERS = 250
_NAME = "bench"
_RING_BACKENDS = 1000
_REST_S = 20.0  # until memory at rest is read: several looks at the flow table have passed


def measure(rounds: int) -> dict[str, float]:
    """Return the figures by what they are of; the median where there are rounds."""
    figures: dict[str, float] = {"ring of 65,537 over 1,000 weighted backends, ms": _ring(rounds)}
    for services in (1, SERVICES):
        with Lab() as lab:
            bench = _Bench(two_armed(lab, 1), services)
            label = f"{services:,} x {BACKENDS}"
            figures |= {f"{label}: {name}": value for name, value in bench.measure(rounds).items()}
    return figures


def table(figures: dict[str, float]) -> Table:
    """Return the figures as a table."""
    shown = Table("what", title="the controller, median")
    shown.add_column("figure", justify="right")
    for name, value in figures.items():
        shown.add_row(name, f"{value:,.2f}")
    return shown


def _ring(rounds: int) -> float:
    weights = {
        BackendKey(IPv4Address("10.3.0.0") + n, 80): 50 + n % 100 for n in range(_RING_BACKENDS)
    }
    gc.collect()
    return (
        statistics.median(
            _timed(lambda: maglev(weights, how=fastest_fill())) for _ in range(rounds)
        )
        * 1e3
    )


def _timed(action: Callable[[], object]) -> float:
    started_s = time.perf_counter()
    action()
    return time.perf_counter() - started_s


@dataclass(frozen=True, slots=True)
class _Servers:
    """Where the backends are: addresses of one host, and ports that its kernel answers on."""

    addresses: list[str]
    ports: list[int]


class _Bench:
    """The daemon with a number of services in a network."""

    def __init__(self, network: Network, services: int) -> None:
        self._gateway, self._lab = network.gateway, network.lab
        self._services = services
        self._folder = network.lab.directory
        self._config_path = self._folder / "bench.yaml"
        self._servers = _listen(network, services * BACKENDS)
        self._interfaces = list(network.gateway_interfaces)
        self._config = self._make_config()
        self._changes = 0

    def measure(self, rounds: int) -> dict[str, float]:
        """Return each figure once; the order of life: start, work, restart, end."""
        found: dict[str, list[float]] = {}
        self._write(self._config)
        for _ in range(max(1, rounds // 2)):
            with self._running(found, "first start, s", fresh=True) as pid:
                for _ in range(rounds):
                    self._time(found, pid, "reload of one backend, s", self._reload)
                    self._time(found, pid, "reload of one weight, s", self._reweigh)
                    self._time(found, pid, "status -o json, s", lambda: self._status("json"))
                    self._time(found, pid, "status, s", lambda: self._status("table"))
                    self._time(found, pid, "/metrics, s", self._metrics)
            with self._running(found, "restart with pins, s") as pid:
                time.sleep(_REST_S)
                found.setdefault("memory at rest, MB", []).append(_memory(pid, "VmRSS"))
                found.setdefault("memory at most, MB", []).append(_memory(pid, "VmHWM"))
                found.setdefault("CPU at rest, %", []).append(_busy(pid))
                found.setdefault("maps in the kernel, MB", []).append(self._kernel())
            self._detach()
        return {name: statistics.median(values) for name, values in found.items()}

    @staticmethod
    def _time(
        found: dict[str, list[float]], pid: int, what: str, action: Callable[[], float]
    ) -> None:
        """Note the seconds of an action, and the CPU time of command and daemon meanwhile.

        On a machine that others use, too, the second says more.
        """
        before_s = _cpu_s(pid) + _commands_cpu_s()
        found.setdefault(what, []).append(action())
        spent_s = _cpu_s(pid) + _commands_cpu_s() - before_s
        found.setdefault(f"{what} of CPU time", []).append(spent_s)

    @contextmanager
    def _running(
        self, found: dict[str, list[float]], what: str, *, fresh: bool = False
    ) -> Iterator[int]:
        """Start the daemon, and stop it at the end; forwarding stays on."""
        with ExitStack() as closing:
            path = self._folder / "notify"
            channel = closing.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
            channel.bind(str(path))
            closing.callback(path.unlink)
            channel.settimeout(pace.lasting(120))
            cache = self._folder / "compiled"
            if fresh:
                shutil.rmtree(cache, ignore_errors=True)
            cache.mkdir(exist_ok=True)
            settings = ("env", f"NOTIFY_SOCKET={path}", "LB_XDP_COMPILE_CACHE=")
            log = closing.enter_context((self._folder / "log").open("a"))
            started_s = time.perf_counter()
            daemon = self._gateway.popen(
                *settings, COMMAND, "run", "-c", str(self._config_path), stdout=log, stderr=log
            )
            closing.callback(self._gateway.stop, daemon, signal.SIGTERM)
            while b"READY=1" not in channel.recv(4096):
                continue
            found.setdefault(what, []).append(time.perf_counter() - started_s)
            found.setdefault(f"{what} of its CPU time", []).append(_cpu_s(daemon.pid))
            self._channel = channel
            yield daemon.pid

    def _reload(self) -> float:
        """Replace one backend by another, and back."""
        self._changes += 1
        backend = self._config["pools"][0]["backends"][0]
        other = self._servers.ports[-1] + self._changes % 2
        self._write_with(backend, port=other)
        return _timed(lambda: self._command("reload"))

    def _reweigh(self) -> float:
        self._changes += 1
        backend = self._config["pools"][0]["backends"][1]
        self._write_with(backend, weight=100 + self._changes % 2)
        return _timed(lambda: self._command("reload"))

    def _write_with(self, backend: dict[str, Any], **changes: int) -> None:
        backend |= changes
        self._write(self._config)

    def _status(self, form: str) -> float:
        return _timed(lambda: self._command("status", "-o", form))

    def _metrics(self) -> float:
        return _timed(
            lambda: self._gateway.run(
                "curl", "-sS", "-o", "/dev/null", "http://127.0.0.1:9464/metrics"
            )
        )

    def _command(self, *arguments: str) -> None:
        self._gateway.run(COMMAND, "--name", _NAME, *arguments)

    def _detach(self) -> None:
        self._command("detach")

    def _kernel(self) -> float:
        """Return what the kernel accounts for the maps that are pinned."""
        pins = Path("/sys/fs/bpf/lb-xdp", _NAME)
        total = 0
        for path in (Path(folder, name) for folder, _, names in os.walk(pins) for name in names):
            shown = subprocess.run(
                ["bpftool", "-j", "map", "show", "pinned", str(path)],
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            if shown.returncode == 0:
                total += int(json.loads(shown.stdout).get("bytes_memlock", 0))
        return total / 1e6

    def _write(self, config: dict[str, Any]) -> None:
        # JSON is YAML, and ruamel would take longer to write this than all else takes.
        self._config_path.write_text(_as_yaml(config))

    def _make_config(self) -> dict[str, Any]:
        check = {
            "type": "tcp",
            "interval": "10s",
            "timeout": "2s",
            "threshold": {"rise": 2, "fall": 3},
        }
        return {
            "gateway": {
                "name": _NAME,
                "interfaces": self._interfaces,
                "metrics": {"listen": "127.0.0.1:9464"},
            },
            "pools": [
                {"name": f"p{n}", "backends": self._backends(n), "health": check}
                for n in range(self._services)
            ],
            "services": [
                {
                    "name": f"s{n}",
                    "vip": str(IPv4Address("198.18.0.1") + n),
                    "port": 80,
                    "mode": "nat",
                    "pool": f"p{n}",
                }
                for n in range(self._services)
            ],
        }

    def _backends(self, number: int) -> list[dict[str, Any]]:
        addresses, ports = self._servers.addresses, self._servers.ports
        found = []
        for n in range(number * BACKENDS, (number + 1) * BACKENDS):
            address, port = addresses[n % len(addresses)], ports[n // len(addresses)]
            found.append({"name": f"b{n}", "host": address, "port": port, "weight": 100})
        return found


def _as_yaml(config: dict[str, Any]) -> str:
    """Return the configuration as an operator would write it: a line for each backend."""
    lines = ["gateway:"]
    lines += [f"  {key}: {json.dumps(value)}" for key, value in config["gateway"].items()]
    lines += ["pools:"]
    for pool in config["pools"]:
        lines += [f"  - name: {pool['name']}", f"    health: {json.dumps(pool['health'])}"]
        lines += ["    backends:"]
        lines += [_flow(backend) for backend in pool["backends"]]
    lines += ["services:"]
    for service in config["services"]:
        first, *others = (f"{key}: {value}" for key, value in service.items())
        lines += [f"  - {first}", *(f"    {other}" for other in others)]
    return "\n".join(lines) + "\n"


def _flow(backend: dict[str, Any]) -> str:
    return "      - {" + ", ".join(f"{key}: {value}" for key, value in backend.items()) + "}"


def _listen(network: Network, count: int) -> _Servers:
    """Let the backends' host answer on as many addresses and ports as backends need."""
    (host,) = network.backends
    addresses = [f"10.2.1.{n}" for n in range(1, min(_SERVERS, count) + 1)]
    network.gateway.address("eth1", "10.2.0.1/16")
    host.address("eth0", *(f"{address}/16" for address in addresses))
    ports = [8000 + n for n in range(count // len(addresses) + 2)]
    # Connections are reset by nobody and read by nobody: the prober closes them.
    code = (
        "import selectors, socket, sys\n"
        "chosen = selectors.DefaultSelector()\n"
        "for port in map(int, sys.argv[1:]):\n"
        "    listener = socket.create_server(('', port), backlog=4096)\n"
        "    listener.setblocking(False)\n"
        "    chosen.register(listener, selectors.EVENT_READ)\n"
        "print('up', flush=True)\n"
        "while True:\n"
        "    for key, _ in chosen.select():\n"
        "        key.fileobj.accept()[0].close()\n"
    )
    server = host.popen(sys.executable, "-c", code, *map(str, ports), stdout=subprocess.PIPE)
    assert server.stdout is not None
    server.stdout.readline()
    return _Servers(addresses, ports)


def _memory(pid: int, field: str) -> float:
    """Return a line of a process's status, in MB."""
    text = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    found = re.search(rf"^{field}:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) * 1024 / 1e6 if found else 0.0


def _busy(pid: int) -> float:
    """Return how much of a core a process takes, over some seconds."""

    before_s, started_s = _cpu_s(pid), time.perf_counter()
    time.sleep(_REST_S)
    return (_cpu_s(pid) - before_s) / (time.perf_counter() - started_s) * 100


def _cpu_s(pid: int) -> float:
    """Return the CPU time of a process since its start, without that of its children."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _commands_cpu_s() -> float:
    """Return the CPU time of the commands that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
