"""The demo: ``scripts/demo`` shows lb_xdp at work, and fails if a claim of it does not hold.

This module owns the story and its words; hosts, servers, clients and the daemon come from the lab,
as in the tests. Everything is real: nginx, connections through the kernel, the daemon itself.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from rich.console import Console
from rich.table import Table

from tests.support import pace, sandbox
from tests.support.clients import HeldConnections, ShortResult, short_connections
from tests.support.gateway import Gateway, config_for
from tests.support.lab import CommandError, Lab
from tests.support.servers import Nginx
from tests.support.topologies import CLIENT_ADDRESSES, VIP, Network, two_armed

_WEIGHTS = {"b1": 100, "b2": 200, "b3": 300}
_SPREAD_REQUESTS = 30_000
_SPREAD_TOLERANCE = 0.05
"""Chance alone moves the smallest share of 30,000 requests by 1.3% of itself (one sigma)."""
_RATE_PER_S = pace.rate(1000)
_FAILOVER_LIMIT_S = pace.lasting(0.3)


class Demo:
    """One showing: the network, the daemon, and what did not turn out as claimed."""

    def __init__(self, lab: Lab, console: Console) -> None:
        self._console = console
        self._begun_s = time.monotonic()
        self._refuted = 0
        self._lab = lab
        self._network: Network
        self._gateway: Gateway
        self._web: dict[str, Nginx] = {}

    def show(self) -> int:
        """Tell the whole story; return how many claims did not hold."""
        self._build()
        self._start()
        self._spread_by_weight()
        self._stop_a_backend()
        self._kill_the_controller()
        self._print_counters()
        self._detach()
        return self._refuted

    def _build(self) -> None:
        self._say("building a network: a client, a gateway, three nginx backends")
        self._network = two_armed(self._lab)
        self._web = {host.name: Nginx(self._lab, host) for host in self._network.backends}
        self._note(f"client 10.1.0.2 ── gateway ── b1, b2, b3; the VIP is {VIP}:80")
        if pace.SLOWNESS > 1:
            self._note(f"LB_XDP_TEST_SLOWNESS: rates and times are scaled by {pace.SLOWNESS:g}")

    def _start(self) -> None:
        self._say("starting the controller: it compiles and attaches the XDP program")
        self._gateway = Gateway(self._network, config_for(self._network))
        self._gateway.start()
        self._gateway.wait_until_up(*_WEIGHTS)
        for program in self._gateway.status()["datapath"]["programs"]:
            self._note("{interface}: program {id}, {mode} mode".format(**program))
        limit = f"{pace.lasting(3):g}"
        answer = self._network.client.run("curl", "-s", "--max-time", limit, f"http://{VIP}/")
        self._note(f"curl http://{VIP}/ answers: {answer.stdout.strip()}")

    def _spread_by_weight(self) -> None:
        self._say(f"sending {_SPREAD_REQUESTS:,} requests, each on a connection of its own")
        result = short_connections(
            self._network.client, VIP, count=_SPREAD_REQUESTS, sources=CLIENT_ADDRESSES
        ).wait()
        table = Table("backend", "weight", "fair share", "requests", "off by")
        worst = 0.0
        for name, weight in _WEIGHTS.items():
            fair = _SPREAD_REQUESTS * weight / sum(_WEIGHTS.values())
            off = result.backends[name] / fair - 1
            worst = max(worst, abs(off))
            got = f"{result.backends[name]:,}"
            table.add_row(name, str(weight), f"{fair:,.0f}", got, f"{off:+.1%}")
        self._console.print(table)
        self._claim(worst <= _SPREAD_TOLERANCE, f"spread by weight, within {_SPREAD_TOLERANCE:.0%}")
        self._claim_none_failed(result)

    def _stop_a_backend(self) -> None:
        self._say(f"stopping backend b3 while {_RATE_PER_S:,.0f} connections per second come in")
        with self._connections_held("b1", "b2"):
            load = short_connections(
                self._network.client, VIP, rate_per_s=_RATE_PER_S, sources=CLIENT_ADDRESSES
            )
            time.sleep(pace.lasting(1))
            stopped_at_s = time.monotonic()
            self._web["b3"].stop()
            time.sleep(pace.lasting(2))
            result = load.stop()
        lasted_s = max((fail.at_s - stopped_at_s for fail in result.failures), default=0.0)
        self._note(
            f"{len(result.failures)} of {result.requests:,} requests failed, "
            f"the last one {lasted_s * 1000:.0f} ms after the stop"
        )
        limit = f"{_FAILOVER_LIMIT_S * 1000:.0f} ms"
        self._claim(lasted_s <= _FAILOVER_LIMIT_S, f"requests fail in the first {limit} only")
        self._claim(not self._gateway.is_up("b3"), "the controller reports b3 down")
        self._say("starting b3 again")
        self._web["b3"].start()
        self._gateway.wait_until_up("b3")
        self._note("b3 is up, and has its old slots back")

    def _kill_the_controller(self) -> None:
        self._say("killing the controller with -9 while requests run")
        counted = self._packets()
        with self._connections_held():
            load = short_connections(
                self._network.client, VIP, rate_per_s=_RATE_PER_S, sources=CLIENT_ADDRESSES
            )
            time.sleep(pace.lasting(1))
            self._gateway.kill()
            self._note("it is dead; the kernel goes on forwarding")
            time.sleep(pace.lasting(3))
            self._say("starting the controller again, requests still running")
            self._gateway.start()
            time.sleep(pace.lasting(1))
            result = load.stop()
        self._claim_none_failed(result)
        self._claim(self._packets() > counted, "the counters go on from where they were")

    def _print_counters(self) -> None:
        self._say("reading /metrics")
        wanted = ("lb_xdp_backend_packets_total", "lb_xdp_backend_up", "lb_xdp_packets_total")
        for line in self._gateway.metrics().splitlines():
            if line.startswith(wanted) and not line.endswith(" 0.0"):
                self._console.print(f"  {line}", markup=False, style="dim", soft_wrap=True)

    def _detach(self) -> None:
        self._say("stopping the controller, detaching the program, removing the network")
        self._gateway.terminate()
        self._gateway.command("detach", "--yes")
        links = [self._network.gateway.link(name) for name in self._network.gateway_interfaces]
        self._claim(not any("xdp" in link for link in links), "no program is left on the gateway")

    def _packets(self) -> float:
        return self._gateway.metric("lb_xdp_backend_packets_total")

    @contextmanager
    def _connections_held(self, *backends: str) -> Iterator[None]:
        """Hold keep-alive connections meanwhile, and claim that those of ``backends`` live on."""
        client = self._network.client
        held = HeldConnections(client, VIP, count=60, sources=CLIENT_ADDRESSES)
        yield
        watched = [one for one in held.stop() if not backends or one.backend in backends]
        broken = [one for one in watched if one.broken_at_s is not None]
        whose = f" to {' and '.join(backends)}" if backends else ""
        self._claim(
            bool(watched) and not broken,
            f"{len(broken)} of {len(watched)} open keep-alive connections{whose} broke",
        )

    def _claim_none_failed(self, result: ShortResult) -> None:
        failed = len(result.failures)
        self._claim(failed == 0, f"{failed} of {result.requests:,} requests failed")

    def _claim(self, holds: bool, text: str) -> None:  # noqa: FBT001 - the claim is the condition
        mark = "[bold green]✔[/]" if holds else "[bold red]✘[/]"
        self._console.print(f"  {mark} {text}")
        self._refuted += not holds

    def _say(self, text: str) -> None:
        elapsed_s = time.monotonic() - self._begun_s
        self._console.print(f"[cyan]{elapsed_s:5.1f} s[/]  [bold]{text}[/]")

    def _note(self, text: str) -> None:
        self._console.print(f"  {text}")


def main() -> int:
    """Run the demo in the sandbox; return the exit code."""
    console = Console(highlight=False)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        sandbox.enter()
        with Lab() as lab:
            refuted = Demo(lab, console).show()
    except KeyboardInterrupt:
        console.print("\ninterrupted; everything that the demo made is removed")
        return 130
    except (sandbox.SandboxError, CommandError, ChildProcessError, TimeoutError) as problem:
        console.print(f"[bold red]demo: {type(problem).__name__}[/]")
        console.print(str(problem), markup=False)
        return 1
    if refuted:
        console.print(f"[bold red]{refuted} claims did not hold[/]")
        return 1
    console.print("[bold green]everything held, and everything is removed[/]")
    return 0


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
