"""The demo on a newcomer's machine: a fresh Debian with its own kernel and its own bcc."""

from __future__ import annotations

import logging

import pytest

from tests.vm.conftest import Site
from tests.vm.machine import Machine

_log = logging.getLogger(__name__)

_DEMO_S = 600
"""Elsewhere under a minute; emulated, a compilation takes half of one and waits are longer."""
_LOOK = """
ip -br link; ip netns; ls /sys/fs/bpf /run/lb-xdp /var/lib/lb-xdp; pgrep -a 'nginx|lb-xdp'; true
"""


def traces(machine: Machine) -> str:
    """Return everything that the demo could leave: links, namespaces, pins, processes."""
    return machine.run("sh", "-c", _LOOK).stdout


@pytest.mark.timeout(_DEMO_S + 300)
def test_the_demo_holds_what_it_claims_and_leaves_nothing(site: Site) -> None:
    """It finds the set-up complete, all of its claims hold, and the machine is as it was before."""
    machine = site.machine
    before = traces(machine)
    slowness = f"LB_XDP_TEST_SLOWNESS={machine.slowness}"
    done = machine.run("env", slowness, "scripts/demo", check=False, timeout_s=_DEMO_S)
    _log.info("%s", done.stdout)
    assert done.returncode == 0, done.stdout
    said = done.stdout.splitlines()
    assert said[0] == "setup: ready: .venv/bin/lb-xdp"
    assert said[-1] == "everything held, and everything is removed"
    assert traces(machine) == before
