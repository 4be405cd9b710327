"""The real daemon on a gateway of the lab, driven as an operator would: files, signals, commands.

This module owns its configuration file, its process and its traces; it refuses to reach into the
daemon's own code.
"""

from __future__ import annotations

import copy
import http.client
import json
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from ruamel.yaml import YAML

from tests.support import pace
from tests.support.topologies import SNATS, VIPS, Network

COMMAND = str(Path(sys.executable).with_name("lb-xdp"))
_METRICS_PORT = 9464
_POLL_S = 0.02

_PROBE = f"{pace.lasting(100):g}ms"
HTTP_CHECK = {"type": "http", "path": "/healthz", "interval": _PROBE, "timeout": _PROBE}
"""A probe every 100 ms, down after the second failure in a row."""

PATIENT_CHECK = {
    "type": "http",
    "path": "/healthz",
    "interval": "500ms",
    "timeout": "500ms",
    "threshold": {"rise": 1, "fall": 3},
}
"""For tests of something else: a busy machine takes no backend down, which would reset flows."""


def config_for(
    network: Network,
    *,
    name: str = "gw1",
    mode: str = "nat",
    protocol: str = "tcp",
    port: int | str = 80,
    backend_port: int | None = 80,
    weights: Sequence[int] = (100, 200, 300),
    health: dict[str, Any] | str | None = None,
    family: int = 4,
    backend_family: int | None = None,
    service: dict[str, Any] | None = None,
    gateway: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return a configuration of one service ``web`` over the backends ``b1``, ``b2`` ...

    Its pool has its name. ``family`` is the VIP's IP version, and the backends' unless
    ``backend_family`` is another. ``service`` and ``gateway`` have further keys of those.
    """
    addresses = network.addresses(backend_family or family)
    targets = zip(network.backends, addresses, weights, strict=False)
    backends = [
        {"name": host.name, "host": address, "weight": weight}
        | ({"port": backend_port} if backend_port else {})
        for host, address, weight in targets
    ]
    check = HTTP_CHECK | {"threshold": {"rise": 2, "fall": 2}} if health is None else health
    web = {"name": "web", "vip": VIPS[family], "port": port, "protocol": protocol, "mode": mode}
    web |= service or {}
    snat = {"snat_addresses": [SNATS[family]]} if mode == "fullnat" else {}
    instance = {
        "name": name,
        "interfaces": list(network.gateway_interfaces),
        "metrics": {"listen": f"127.0.0.1:{_METRICS_PORT}"},
    }
    return {
        "gateway": instance | snat | (gateway or {}),
        "pools": [{"name": web["name"], "backends": backends, "health": check}],
        "services": [web | {"pool": web["name"]}],
    }


def joined(first: dict[str, Any], *others: dict[str, Any]) -> dict[str, Any]:
    """Return the first configuration with the services and pools of all, of different names."""
    every = (first, *others)
    gateway = {key: value for config in every for key, value in config["gateway"].items()}
    snats = {a: None for config in every for a in config["gateway"].get("snat_addresses", ())}
    return {
        "gateway": gateway | ({"snat_addresses": list(snats)} if snats else {}),
        "pools": [pool for config in every for pool in config["pools"]],
        "services": [service for config in every for service in config["services"]],
    }


def reweighted(config: dict[str, Any], weight: int = 500) -> dict[str, Any]:
    """Return a configuration in which the first backend has another weight."""
    changed = copy.deepcopy(config)
    changed["pools"][0]["backends"][0]["weight"] = weight
    return changed


class Gateway:
    """A daemon with its configuration file, from `start` to the end of the lab."""

    def __init__(self, network: Network, config: dict[str, Any]) -> None:
        self.host = network.gateway
        self.name = str(config["gateway"]["name"])
        folder = network.lab.directory / f"gateway-{self.name}"
        folder.mkdir()
        self.config_path = folder / "lb.yaml"
        self.log_path = folder / "log"
        self._process: subprocess.Popen[str] | None = None
        self.write(config)
        network.lab.on_close.callback(self._remove_traces)

    def write(self, config: dict[str, Any] | str) -> None:
        """Replace the configuration file; `reload` makes the daemon read it."""
        if isinstance(config, str):
            self.config_path.write_text(config)
        else:
            YAML().dump(config, self.config_path)

    def start(
        self,
        *arguments: str,
        wait_s: float = 60,
        by: Sequence[str] = (),
        program: Sequence[str] = (COMMAND,),
    ) -> None:
        """Start the daemon; with ``wait_s`` return when it says that it is ready.

        ``by`` is a command that runs the daemon's, as ``setpriv`` does; ``program`` stands for
        ``lb-xdp``. What was compiled for another gateway of this test run is used again.
        """
        cache = Path(tempfile.gettempdir(), "compiled")
        cache.mkdir(exist_ok=True)
        with self.log_path.open("a") as log:
            command = [*by, *program, "run", "-c", str(self.config_path), *arguments]
            settings = ("env", f"LB_XDP_COMPILE_CACHE={cache}")
            self._process = self.host.popen(*settings, *command, stdout=log, stderr=log)
        if wait_s:
            self.wait_until(lambda: self.get("/readyz")[0] == http.HTTPStatus.OK, timeout_s=wait_s)

    @property
    def pid(self) -> int:
        """Return the daemon's process number."""
        return self._running().pid

    def log(self) -> str:
        """Return everything that the daemon logged, of all its lives."""
        return self.log_path.read_text()

    def reload(self) -> None:
        """Send SIGHUP. The daemon reloads on its own time: wait for what should come of it."""
        self._running().send_signal(signal.SIGHUP)

    def take(self, config: dict[str, Any]) -> None:
        """Write the file, reload, and return when the daemon has accepted it."""
        stamp = "lb_xdp_config_last_reload_timestamp_seconds"
        before = self.metric(stamp)
        self.write(config)
        self.reload()
        self.wait_until(lambda: self.metric(stamp) != before, timeout_s=60)
        if not self.metric("lb_xdp_config_last_reload_success"):
            raise ValueError(f"the configuration is refused:\n{self.log()}")

    def kill(self) -> None:
        """End the daemon by SIGKILL."""
        self._end(signal.SIGKILL)

    def wait(self) -> int:
        """Wait until the daemon has ended by itself; return its exit code."""
        code = self._running().wait(timeout=pace.lasting(30))
        self._process = None
        return code

    def terminate(self) -> int:
        """End the daemon by SIGTERM; return its exit code."""
        return self._end(signal.SIGTERM)

    def command(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run ``lb-xdp`` for this gateway."""
        return self.host.run(COMMAND, "--name", self.name, *arguments, check=check)

    def follow(self, *arguments: str) -> subprocess.Popen[str]:
        """Start ``lb-xdp`` for this gateway, to read what it prints until the lab ends."""
        command = (COMMAND, "--name", self.name, *arguments)
        return self.host.popen(*command, stdout=subprocess.PIPE)

    def status(self) -> dict[str, Any]:
        """Return what ``lb-xdp status -o json`` prints."""
        status: dict[str, Any] = json.loads(self.command("status", "-o", "json").stdout)
        return status

    def notices(self) -> str:
        """Return what ``status`` wants operators to read, in one text."""
        return " ".join(self.status()["notices"])

    def backends(self) -> dict[str, dict[str, Any]]:
        """Return the backends of all services in the status, by name."""
        services = self.status()["services"]
        return {entry["name"]: entry for service in services for entry in service["backends"]}

    def override(self, backend: str, *, service: str = "web", **asked: Any) -> None:
        """Have ``admin=``, ``weight=``, ``reason=`` or ``expires=`` hold. Raises ValueError."""
        self._ask_api("PUT", f"/v1/overrides/{service}/{backend}", asked)

    def clear_override(self, backend: str, *, service: str = "web") -> None:
        """Have the file hold again. Raises ValueError when that is refused."""
        self._ask_api("DELETE", f"/v1/overrides/{service}/{backend}", None)

    def _ask_api(self, method: str, path: str, body: dict[str, Any] | None) -> None:
        connection = http.client.HTTPConnection("localhost")
        with socket.socket(socket.AF_UNIX) as channel, closing(connection):
            channel.settimeout(pace.lasting(10))
            channel.connect(f"/run/lb-xdp/{self.name}/api.sock")
            connection.sock = channel
            headers = {"Content-Type": "application/json"} if body is not None else {}
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            text = answer.read().decode()
        if answer.status != http.HTTPStatus.OK:
            raise ValueError(f"{method} {path}: {answer.status} {text}")

    def get(self, path: str) -> tuple[int, str]:
        """Return status code and text of a page of the daemon's HTTP port; code 0: no answer."""
        connection = http.client.HTTPConnection("127.0.0.1", _METRICS_PORT, timeout=pace.lasting(5))
        with closing(connection):
            try:
                with self.host.inside():
                    connection.connect()
                connection.request("GET", path)
                response = connection.getresponse()
                return response.status, response.read().decode()
            except (OSError, http.client.HTTPException):
                return 0, ""

    def metrics(self) -> str:
        """Return the text of ``/metrics``."""
        return self.get("/metrics")[1]

    def metric(self, name: str, **labels: str) -> float:
        """Return the sum of the samples of ``name`` that have these labels."""
        return sum(
            sample.value
            for family in text_string_to_metric_families(self.metrics())
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def wait_until_up(self, *names: str, timeout_s: float = 10) -> None:
        """Return when the named backends are up."""
        self.wait_until(lambda: all(self.is_up(name) for name in names), timeout_s=timeout_s)

    def wait_until_down(self, *names: str, timeout_s: float = 10) -> None:
        """Return when the named backends are down."""
        self.wait_until(lambda: not any(map(self.is_up, names)), timeout_s=timeout_s)

    def is_up(self, backend: str) -> bool:
        """Say whether the daemon sends traffic to ``backend``."""
        return self.metric("lb_xdp_backend_up", backend=backend) > 0

    def wait_until(self, holds: Callable[[], bool], *, timeout_s: float = 10) -> None:
        """Return when ``holds()`` does. Raise, with the daemon's log, if it ends or is slow."""
        timeout_s = pace.lasting(timeout_s)
        deadline = time.monotonic() + timeout_s
        while not holds():
            if self._running().poll() is not None:
                raise ChildProcessError(f"lb-xdp ended: {self._running().returncode}\n{self.log()}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"not within {timeout_s} s; the daemon's log:\n{self.log()}")
            time.sleep(_POLL_S)

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None:
            raise ProcessLookupError("the daemon is not started")
        return self._process

    def _end(self, how: int) -> int:
        code = self.host.stop(self._running(), how)
        self._process = None
        return code

    def _remove_traces(self) -> None:
        """End the daemon and take its pins away, so that the next lab may use the name again."""
        if self._process is not None:
            self.kill()
        for parent in ("/sys/fs/bpf/lb-xdp", "/run/lb-xdp", "/var/lib/lb-xdp"):
            shutil.rmtree(Path(parent, self.name), ignore_errors=True)
