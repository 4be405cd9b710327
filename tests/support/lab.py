"""Networks of namespaces, built line by line as one would cable hosts.

    with Lab() as lab:
        client, server = lab.host("client"), lab.host("server")
        lab.cable(client, "eth0", server, "eth0")
        client.address("eth0", "10.0.0.1/24")
        server.address("eth0", "10.0.0.2/24")
        client.run("ping", "-c1", "10.0.0.2")

This module owns hosts, cables, switches and the processes on them, and ends what it started. It
refuses to run outside the sandbox, where a mistake would reach the machine's own network. The
ready-made networks are in ``topologies``.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from tests.support import pace, sandbox, xdp_pass

QUEUES = 4
"""Queues of every interface: as many as the machine that the figures in KERNEL.md come from."""

IPV6 = 6

_PASS_PIN = Path("/sys/fs/bpf/lab-xdp-pass")
_counter = itertools.count(1)


def family_of(address: str) -> int:
    """Return 4 or 6: of which IP version an address or prefix is."""
    return IPV6 if ":" in address else 4


class CommandError(Exception):
    """A command on a host failed; the message has its output."""


class Host:
    """One network namespace, and the processes in it."""

    def __init__(self, name: str, namespace: str, *, is_gateway: bool = False) -> None:
        self.name = name
        self.is_gateway = is_gateway
        self.namespace = namespace
        self._processes: list[subprocess.Popen[str]] = []
        self.ip("link set lo up")

    def run(
        self, *command: str, stdin: str | None = None, check: bool = True, timeout_s: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end and return it. Raise `CommandError` if it fails."""
        done = subprocess.run(
            self._command(command),
            input=stdin if stdin is not None else "",
            capture_output=True,
            text=True,
            timeout=pace.lasting(timeout_s),
            check=False,
        )
        if check and done.returncode != 0:
            text = f"{done.stdout}{done.stderr}{stdin or ''}"
            raise CommandError(f"{self.name}: {' '.join(command)}: exit {done.returncode}\n{text}")
        return done

    def popen(self, *command: str, **options: Any) -> subprocess.Popen[str]:
        """Start a command that lives until it ends, or `stop` is called, or the lab closes.

        Call it from the main thread: the kernel ends the command with the thread that started it.
        """
        options = {"stdin": subprocess.DEVNULL, "text": True, "start_new_session": True} | options
        process: subprocess.Popen[str] = subprocess.Popen(self._command(command), **options)
        self._processes.append(process)
        return process

    def stop(self, process: subprocess.Popen[str], how: int = signal.SIGKILL) -> int:
        """Send a signal to a command, wait for its end, and return its exit code."""
        process.send_signal(how)
        code = process.wait(timeout=pace.lasting(30))
        self._forget(process)
        return code

    def close(self) -> None:
        """End every process that is left."""
        for process in list(self._processes):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            self._forget(process)

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Let the calling thread be on this host: sockets made meanwhile belong to it for good."""
        with open("/proc/thread-self/ns/net") as here, open(self._path) as there:  # noqa: PTH123 - descriptors for setns
            sandbox.set_namespace(there.fileno(), sandbox.CLONE_NEWNET)
            try:
                yield
            finally:
                sandbox.set_namespace(here.fileno(), sandbox.CLONE_NEWNET)

    def socket(self, address: str, kind: socket.SocketKind) -> socket.socket:
        """Make a socket of this host that can talk to ``address``."""
        family = socket.AF_INET6 if family_of(address) == IPV6 else socket.AF_INET
        with self.inside():
            return socket.socket(family, kind)

    def ip(self, *lines: str) -> None:
        """Run ``ip`` commands, a line each without the leading ``ip``, in one process."""
        self.run("ip", "-batch", "-", stdin="\n".join(lines) + "\n")

    def address(self, interface: str, *addresses: str) -> None:
        """Give an interface addresses, each with its prefix length."""
        lines = (f"addr add {address} dev {interface}" for address in addresses)
        # IPv6 would be unusable for a second, while nobody else claims it.
        self.ip(*(line + (" nodad" if family_of(line) == IPV6 else "") for line in lines))

    def route(self, destination: str, via: str) -> None:
        """Route ``destination`` (a prefix or ``default``) through the neighbour ``via``."""
        self.ip(f"route replace {destination} via {via}")

    def sysctl(self, **values: int | str) -> None:
        """Set net.ipv4 sysctls; two underscores stand for a dot: ``conf__all__rp_filter=0``."""
        self._sysctl("ipv4", values)

    def sysctl6(self, **values: int | str) -> None:
        """Set net.ipv6 sysctls, written as for `sysctl`."""
        self._sysctl("ipv6", values)

    def bring_up(self, interface: str) -> None:
        """Give an interface what XDP on a veth needs, and turn it on.

        - An XDP_PASS program, except on a gateway, whose program is the one under test: frames
          that the peer sends by XDP_TX or XDP_REDIRECT are lost without one.
        - No checksum offload: veth leaves checksums to a card that is not there, and a packet that
          XDP rewrites would carry the unfinished one.
        - No GRO (after the program, which turns it on): merged packets cannot be counted.
        """
        if not self.is_gateway:
            xdp_pass.pin(_PASS_PIN)
            self.ip(f"link set {interface} xdpdrv pinned {_PASS_PIN}")
        self.run("ethtool", "-K", interface, "tx", "off", "gro", "off")
        self.ip(f"link set {interface} up")

    def link(self, interface: str) -> dict[str, Any]:
        """Return what ``ip -d -s link show`` says about an interface."""
        (shown,) = json.loads(self.run("ip", "-j", "-d", "-s", "link", "show", interface).stdout)
        found: dict[str, Any] = shown
        return found

    def mac(self, interface: str) -> str:
        """Return the hardware address of an interface."""
        return str(self.link(interface)["address"])

    def count_packets(
        self, protocol: str, port: int, *, source: str = "", destination: str = ""
    ) -> PacketCounter:
        """Start to count the packets that arrive here for ``port``, exactly, before any filter."""
        return PacketCounter(self, protocol, port, source, destination)

    def _sysctl(self, family: str, values: dict[str, int | str]) -> None:
        names = {name: name.replace("__", ".") for name in values}
        settings = [f"net.{family}.{names[name]}={value}" for name, value in values.items()]
        self.run("sysctl", "-q", "-w", *settings)

    @property
    def _path(self) -> str:
        return f"/run/netns/{self.namespace}"

    def _command(self, command: tuple[str, ...]) -> list[str]:
        # nsenter and not `ip netns exec`, which mounts a fresh /sys and so hides the bpffs.
        enter = ["setpriv", "--pdeathsig", "KILL", "nsenter", f"--net={self._path}", "--"]
        return [*enter, *command]

    def _forget(self, process: subprocess.Popen[str]) -> None:
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()
        if process in self._processes:
            self._processes.remove(process)


class PacketCounter:
    """Counts packets by nftables where they enter a host, VIP or not, accepted or not."""

    def __init__(self, host: Host, protocol: str, port: int, source: str, destination: str) -> None:
        self._host = host
        self._table = f"lab{next(_counter)}"
        ip = "ip6" if family_of(source + destination) == IPV6 else "ip"
        addresses = f"{ip} saddr {source} " if source else ""
        addresses += f"{ip} daddr {destination} " if destination else ""
        rule = f"{addresses}{protocol} dport {port} counter"
        hook = "type filter hook prerouting priority -500;"
        text = f"table inet {self._table} {{\nchain arrivals {{\n{hook}\n{rule}\n}}\n}}\n"
        host.run("nft", "-f", "-", stdin=text)

    def read(self) -> int:
        """Return the packets counted so far."""
        listing = json.loads(
            self._host.run("nft", "-j", "list", "table", "inet", self._table).stdout
        )
        rules = [entry["rule"] for entry in listing["nftables"] if "rule" in entry]
        return int(rules[0]["expr"][-1]["counter"]["packets"])


class Lab:
    """A set of hosts and cables that is gone when the ``with`` block ends."""

    def __init__(self) -> None:
        if not sandbox.is_inside():
            raise sandbox.SandboxError("a lab is built in the sandbox only: see tests/conftest.py")
        self._number = next(_counter)
        self._hosts: dict[str, Host] = {}
        self.on_close = ExitStack()
        self.directory = Path(tempfile.mkdtemp(prefix="lab-"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all processes, then remove all hosts and files."""
        self.on_close.close()
        for host in self._hosts.values():
            host.close()
        for host in self._hosts.values():
            subprocess.run(["ip", "netns", "del", host.namespace], check=True)
        shutil.rmtree(self.directory)

    def host(self, name: str, *, is_gateway: bool = False) -> Host:
        """Add a host. A gateway's interfaces are left without an XDP program."""
        namespace = f"{name}-{self._number}"
        subprocess.run(["ip", "netns", "add", namespace], check=True)
        self._hosts[name] = Host(name, namespace, is_gateway=is_gateway)
        return self._hosts[name]

    def switch(self, name: str = "switch") -> Switch:
        """Add a switch."""
        return Switch(self, self.host(name))

    def cable(
        self, left: Host, left_end: str, right: Host, right_end: str, *, mtu: int = 1500
    ) -> None:
        """Connect two hosts by a cable with an interface at each end, both up."""
        ends = f"mtu {mtu} numrxqueues {QUEUES} numtxqueues {QUEUES}"
        peer = f"peer name {right_end} {ends} netns {right.namespace}"
        left.ip(f"link add {left_end} {ends} type veth {peer}")
        left.bring_up(left_end)
        right.bring_up(right_end)


class Switch:
    """A host that only bridges."""

    def __init__(self, lab: Lab, host: Host) -> None:
        self._lab = lab
        self.host = host
        host.ip("link add br0 type bridge stp_state 0 forward_delay 0", "link set br0 up")

    def plug(self, other: Host, interface: str, *, mtu: int = 1500) -> None:
        """Connect a host's new interface to a port of this switch."""
        port = f"to-{other.name}"[:15]
        self._lab.cable(other, interface, self.host, port, mtu=mtu)
        self.host.ip(f"link set {port} master br0")
