"""A name server for the lab: a real dnsmasq, whose answers change while it runs.

This module owns its process and its hosts file. It refuses to know who asks.
"""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Mapping, Sequence

from tests.support.lab import Host, Lab
from tests.support.scenes import wait_until

DOMAIN = "internal.example"
TTL_S = 1


class DnsServer:
    """Answers for the names of ``internal.example`` at ``address``, a host's own; TTL 1 s."""

    def __init__(self, lab: Lab, host: Host, address: str) -> None:
        self.host = host
        self.address = address
        self._folder = lab.directory / f"dnsmasq-{host.name}"
        self._folder.mkdir()
        self._hosts = self._folder / "hosts"
        self._hosts.write_text("")
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start it, and return when it answers."""
        self._process = self.host.popen(
            "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts",
            f"--addn-hosts={self._hosts}", f"--local=/{DOMAIN}/", f"--local-ttl={TTL_S}",
            "--bind-interfaces", f"--listen-address={self.address}", "--user=root",
            "--log-facility=-", f"--pid-file={self._folder / 'pid'}",
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        wait_until(self._listens, "dnsmasq listens")

    def _listens(self) -> bool:
        found = self.host.run("ss", "-Hlun", "sport", "=", ":53").stdout
        return bool(found.strip())

    def stop(self) -> None:
        """End it at once."""
        if self._process is not None:
            self.host.stop(self._process)
            self._process = None

    def say(self, names: Mapping[str, Sequence[str]]) -> None:
        """Answer this from now on: addresses by the name's first label; other names do not exist.

        A new file takes the place of the old one: it is never seen half written.
        """
        lines = [f"{address} {name}.{DOMAIN}\n" for name, all_ in names.items() for address in all_]
        fresh = self._folder / "hosts.new"
        fresh.write_text("".join(lines))
        fresh.replace(self._hosts)
        if self._process is not None:
            self._process.send_signal(signal.SIGHUP)
