"""`lb-xdp decap` on backends of the lab, run as an operator would.

This module owns attaching it and taking its pin away at the end; ``tests/netns/test_decap.py`` owns
what it does to packets.
"""

from __future__ import annotations

import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from tests.support.gateway import COMMAND
from tests.support.topologies import VIP, VIP6, Network

_PINS = Path("/sys/fs/bpf/lb-xdp-decap")
_TRUST = ("--trust", "172.16.0.0/16", "--trust", "100::/64")
"""Where a gateway's tunnels come from unless its configuration says otherwise."""


def attach_decap(network: Network) -> None:
    """Have every backend undo tunnels of the gateway to its VIPs, until the lab is closed."""
    # All backends run the same program: it need not be compiled for each.
    cache = Path(tempfile.gettempdir(), "decap-compiled")
    cache.mkdir(exist_ok=True)
    network.lab.on_close.callback(_remove_if_empty, _PINS)
    for host in network.backends:
        interface = network.backend_interface[host.name]
        # Not by a detach when the lab closes, which would take as long as half of a test.
        network.lab.on_close.callback(shutil.rmtree, _PINS / interface, ignore_errors=True)
        attach = (COMMAND, "decap", "attach", interface, *_TRUST, "--vip", VIP, "--vip", VIP6)
        host.run("env", f"LB_XDP_COMPILE_CACHE={cache}", *attach)


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):  # another lab's pins are in it, or it is gone
        folder.rmdir()
