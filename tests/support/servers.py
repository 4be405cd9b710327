"""Backends for the lab: real nginx, and an echo server for UDP and long-lived TCP.

This module owns starting, asking and stopping servers on a host; the echo server's own loop is
``echo``. It refuses to know what stands between client and server.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import TypedDict

from tests.support import pace
from tests.support.lab import Host, Lab

PYTHON = sys.executable

_NGINX = """\
daemon off;
master_process off; # one process, so that one signal ends all of it
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 30000; }}
http {{
    access_log off;
    default_type application/octet-stream;
    keepalive_timeout {keepalive_s}s;
    keepalive_requests 100000000;
    client_max_body_size 1g;
    client_body_temp_path {folder}/client;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
{listen}
        add_header X-Backend {name} always;
        location / {{ return 200 "{name}\\n"; }}
        location = /healthz {{ return 200 "ok\\n"; }}
        location /files/ {{ root {folder}; dav_methods PUT; }}
    }}
}}
"""


_LISTEN = "        listen [::]:{} ipv6only=off backlog=32768;"


class Nginx:
    """An nginx on a host: answers with the host's name, in the body and as ``X-Backend``.

    ``/healthz`` answers ok, ``/files/`` serves and takes (PUT) files of the folder `files`.
    """

    def __init__(
        self,
        lab: Lab,
        host: Host,
        port: int = 80,
        *,
        also: Sequence[int] = (),
        keepalive_s: int = 75,
    ) -> None:
        self.host = host
        self.port = port
        folder = lab.directory / f"nginx-{host.name}-{port}"
        self.files = folder / "files"
        self.files.mkdir(parents=True)
        self._folder = folder
        listen = "\n".join(_LISTEN.format(number) for number in (port, *also))
        text = _NGINX.format(folder=folder, name=host.name, listen=listen, keepalive_s=keepalive_s)
        (folder / "nginx.conf").write_text(text)
        self._process: subprocess.Popen[str] | None = None
        self.start()

    def start(self) -> None:
        """Start it, and return when it answers."""
        error_log = str(self._folder / "error.log")
        command = ["nginx", "-e", error_log, "-p", str(self._folder), "-c", "nginx.conf"]
        self._process = self.host.popen(*command)
        wait_for_port(self.host, self.port)

    def stop(self, how: int = signal.SIGKILL) -> None:
        """End it: SIGKILL at once, SIGQUIT after its open requests."""
        if self._process is not None:
            self.host.stop(self._process, how)
            self._process = None

    def freeze(self) -> None:
        """Keep the process but have it answer nothing: the kernel still takes connections."""
        os.kill(self.pid, signal.SIGSTOP)

    @property
    def pid(self) -> int:
        """Return its process number."""
        if self._process is None:
            raise ProcessLookupError(f"nginx on {self.host.name} is stopped")
        return self._process.pid


class EchoStats(TypedDict):
    """What an echo server counted so far."""

    tcp_connections: int
    tcp_lines: int
    tcp_open: int
    udp_datagrams: int


class Echo:
    """An echo server on a host, UDP and TCP on one port, IPv4 and IPv6.

    ``hello`` comes back as ``b1 hello``.

    TCP answers line by line and never closes by itself.
    """

    def __init__(self, host: Host, port: int = 7000) -> None:
        self.host = host
        self.port = port
        arguments = ["-m", "tests.support.echo", host.name, str(port)]
        self.process = host.popen(PYTHON, *arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._answer()

    def stats(self) -> EchoStats:
        """Return what it counted so far."""
        stdin = self.process.stdin
        assert stdin is not None
        stdin.write("\n")
        stdin.flush()
        answer: EchoStats = json.loads(self._answer())
        return answer

    def stop(self) -> None:
        """End it at once."""
        self.host.stop(self.process)

    def _answer(self) -> str:
        stdout = self.process.stdout
        assert stdout is not None
        line = stdout.readline()
        if not line:
            raise ChildProcessError(f"the echo server on {self.host.name} ended: see its stderr")
        return line


def wait_for_port(host: Host, port: int, *, timeout_s: float = 10) -> None:
    """Return when something on ``host`` takes TCP connections on ``port``."""
    timeout_s = pace.lasting(timeout_s)
    deadline = time.monotonic() + timeout_s
    while True:
        with host.inside(), socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if time.monotonic() > deadline:
            raise TimeoutError(f"nothing listens on port {port} of {host.name} after {timeout_s} s")
        time.sleep(0.01)
