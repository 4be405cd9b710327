"""Frames a second through a gateway between two namespaces, beside what the kernel does itself.

A generator sends live frames of BPF_PROG_TEST_RUN by a veth; the gateway forwards them by another
one; the sink's interface counts what arrives. All of it runs on one CPU, generator and sink
included, so these are figures to compare, not a gateway's limit. Frames come as from a card: one by
one, without offloads and without sockets.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rich.table import Table

from lb_xdp.core.model import Mode
from lb_xdp.datapath import syscall
from lb_xdp.datapath.bench import Harness
from lb_xdp.datapath.bench_frames import Kind, Traffic, to_service
from lb_xdp.datapath.syscall import XdpFlag
from tests.support import sandbox
from tests.support.program import INNER, OUTER, VIP, Wire, backend_address, backend_mac
from tests.support.timing_lab import BACKENDS, MAC, Built, Setup, make_wire

FRAMES = 500_000
FLOWS = 1_000
_GENERATOR, _SINK = "generator", "sink"
_QUIET_S = 0.05
_MODES = (Mode.DSR, Mode.IPIP, Mode.NAT)
_BACKENDS = [str(backend_address(n)) for n in range(1, BACKENDS + 1)]


def measure(rounds: int) -> dict[str, float]:
    """Return the median of frames a second that arrive, by who forwards them."""
    rates: dict[str, list[float]] = {}
    with ExitStack() as closing:
        wire = make_wire()
        closing.callback(wire.close)
        harness = closing.enter_context(Harness())
        _move_ends()
        built = {m: closing.enter_context(Built(Setup(m), wire)) for m in _MODES}
        to_vip = to_service(Kind.ESTABLISHED, VIP, 80, MAC, FLOWS)
        to_backend = to_service(Kind.ESTABLISHED, backend_address(1), 80, MAC, FLOWS)
        for _ in range(rounds):
            for mode in _MODES:
                with _program(harness, built[mode], wire):
                    rates.setdefault(f"lb_xdp {mode}", []).append(_rate(harness, to_vip))
            rates.setdefault("kernel, routing", []).append(_rate(harness, to_backend))
            with _dnat():
                rates.setdefault("kernel, nftables DNAT", []).append(_rate(harness, to_vip))
    return {name: statistics.median(found) for name, found in rates.items()}


def table(frames: dict[str, float]) -> Table:
    """Return the figures as a table."""
    shown = Table("forwarded by", title=f"frames a second on one CPU, {FLOWS} flows, median")
    shown.add_column("Mpps", justify="right")
    for name, rate in frames.items():
        shown.add_row(name, f"{rate / 1e6:.2f}")
    return shown


def _run(*command: str, stdin: str | None = None) -> None:
    subprocess.run(command, input=stdin, text=True, check=True, capture_output=True)


def _run_in(namespace: str, *command: str) -> None:
    # nsenter and not `ip netns exec`, which mounts a fresh /sys and so hides the bpffs.
    _run("nsenter", f"--net=/run/netns/{namespace}", "--", *command)


def _move_ends() -> None:
    """Put the far ends into namespaces; let the kernel poll the gateway's ends, as it does cards.

    The sink's frames carry the backends' MACs, so its stack drops them at once; what XDP sends is
    dropped in XDP there.
    """
    for peer, namespace in ((f"{OUTER}-peer", _GENERATOR), (f"{INNER}-peer", _SINK)):
        _run("ip", "netns", "add", namespace)
        _run("ip", "link", "set", peer, "netns", namespace)
        _run_in(namespace, "ip", "link", "set", peer, "xdp", "off")
        _run_in(namespace, "ip", "link", "set", peer, "up")
    for interface in (OUTER, INNER):
        _run("ip", "link", "set", interface, "xdp", "off")
        _run("ethtool", "-K", interface, "gro", "on")
    for n, address in enumerate(_BACKENDS, start=1):
        mac = backend_mac(n).hex(":")
        _run("ip", "neighbour", "replace", address, "lladdr", mac, "dev", INNER)
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1", encoding="ascii")


@contextmanager
def _program(harness: Harness, built: Built, wire: Wire) -> Iterator[None]:
    """Run a gateway's program on both interfaces meanwhile; the sink drops in XDP."""
    links = [
        syscall.link_create(built.program_fd, interface.index, XdpFlag.NATIVE)
        for interface in wire.topology(1).interfaces.values()
    ]
    ifindex = int(_statistic(_SINK, f"{INNER}-peer", "ifindex"))
    drop = harness.baseline("drop")
    with _inside(_SINK):
        links.append(syscall.link_create(drop, ifindex, XdpFlag.NATIVE))
    try:
        yield
    finally:
        for link in links:
            os.close(link)


@contextmanager
def _dnat() -> Iterator[None]:
    """Let nftables spread the flows over the backends meanwhile."""
    targets = ", ".join(f"{n} : {address}" for n, address in enumerate(_BACKENDS))
    rule = (
        f"ip daddr {VIP} tcp dport 80 "
        f"dnat to jhash ip saddr . tcp sport mod {BACKENDS} map {{ {targets} }}"
    )
    hook = "type nat hook prerouting priority dstnat;"
    _run("nft", "-f", "-", stdin=f"table ip live {{\nchain arrivals {{\n{hook}\n{rule}\n}}\n}}\n")
    # The frames' TCP checksums are not kept up to date.
    Path("/proc/sys/net/netfilter/nf_conntrack_checksum").write_text("0", encoding="ascii")
    try:
        yield
    finally:
        _run("nft", "delete", "table", "ip", "live")


def _rate(harness: Harness, traffic: Traffic) -> float:
    """Send frames, and return how many a second arrive."""
    before = _arrived()
    ifindex = int(_statistic(_GENERATOR, f"{OUTER}-peer", "ifindex"))
    with _inside(_GENERATOR):
        start = time.perf_counter()
        harness.send(traffic, ifindex, FRAMES)
        taken_s = time.perf_counter() - start
    return (_settled() - before) / taken_s


def _settled() -> int:
    """Return how many frames arrived once no more do."""
    last, now = -1, _arrived()
    while now != last:
        time.sleep(_QUIET_S)  # there is no event for a frame that does not come
        last, now = now, _arrived()
    return now


def _arrived() -> int:
    return int(_statistic(_SINK, f"{INNER}-peer", "statistics/rx_packets"))


def _statistic(namespace: str, interface: str, name: str) -> str:
    """Read a file of an interface; /sys shows the namespace that mounted it."""
    path = f"/sys/class/net/{interface}/{name}"
    command = ["ip", "netns", "exec", namespace, "cat", path]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@contextmanager
def _inside(namespace: str) -> Iterator[None]:
    """Be in another network namespace meanwhile, with this thread."""
    with open("/proc/thread-self/ns/net") as here, open(f"/run/netns/{namespace}") as there:  # noqa: PTH123 - descriptors for setns
        sandbox.set_namespace(there.fileno(), sandbox.CLONE_NEWNET)
        try:
            yield
        finally:
            sandbox.set_namespace(here.fileno(), sandbox.CLONE_NEWNET)
