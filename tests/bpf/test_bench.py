"""The bench measures what it says, and leaves a gateway as it was."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from lb_xdp.cli import main
from lb_xdp.core.desired import BackendId
from lb_xdp.core.goals import desire
from lb_xdp.core.model import Algorithm, Config, Gateway, Mode, Protocol, XdpMode
from lb_xdp.core.plan import Observed, make_plan
from lb_xdp.core.rings import Rings
from lb_xdp.datapath.bench import BASELINES, Case, Harness, measure
from lb_xdp.datapath.bench_frames import Kind, to_service
from lb_xdp.datapath.bpffs import Pins
from lb_xdp.datapath.compile import build_id, way_bits
from lb_xdp.datapath.gateway import Datapath
from lb_xdp.datapath.layout import layout
from lb_xdp.datapath.maps import BpfMap, persistent_specs
from tests.support import timing
from tests.support.program import INNER, OUTER, VIP, VIP6, Wire, service
from tests.support.timing_lab import MAC

_BPFFS = Path("/sys/fs/bpf")
_TX = 3


@pytest.fixture
def running(wire: Wire) -> Iterator[Config]:
    """Provide a gateway ``bench`` as a daemon leaves it: pinned, attached, nobody at the wheel."""
    tracked = service(Mode.DSR, 81, algorithm=Algorithm.ROUND_ROBIN, name="turns")
    udp = service(Mode.NAT, 53, protocol=Protocol.UDP, name="dns")
    config = Config(
        Gateway("bench", (OUTER, INNER), XdpMode.AUTO, "", None),
        (service(Mode.DSR), tracked, udp),
    )
    live = {BackendId(s.key, b.key) for s, b in config.backends()}
    desired = desire(config, wire.topology(3), live, Rings().ring_of, build=build_id(), held={})
    datapath = Datapath.open("bench", XdpMode.AUTO, replace=True)
    datapath.apply(make_plan(Observed(), desired, time.monotonic_ns()), Observed())
    datapath.close()
    yield config
    Pins(_BPFFS, "bench", layout().version).remove()


def _written(config: Config) -> dict[str, object]:
    """Return all that packets could have changed."""
    folder = Pins(_BPFFS, "bench", layout().version).maps
    found: dict[str, object] = {}
    for spec in persistent_specs(config.gateway.flow_table.entries, way_bits()):
        if spec.name != "devices":
            with BpfMap.reopen(spec, folder / spec.name) as bpf_map:
                keys, values = bpf_map.read_all()
                found[spec.name] = (keys.tobytes(), values.tobytes())
    return found


def test_the_harness_restores_frames_that_grew() -> None:
    """A program that adds a header on each run finds room each time, in both families."""
    with Harness(max_flows=16) as harness:
        for vip, name in ((VIP, "encap, IPv4"), (VIP6, "encap, IPv6")):
            sent = to_service(Kind.ESTABLISHED, vip, 80, MAC, 16)
            case = Case(name, harness.baseline(name), sent, 1)
            found = measure(harness, [case], rounds=1, repeat=1000)
            assert found[name].gross_ns > 0
            assert harness.action(case) == _TX


def test_the_bench_of_a_gateway_changes_nothing(running: Config) -> None:
    """Every service is timed and forwarded, but no counter, flow or turn of the gateway moves."""
    before = _written(running)
    result = CliRunner().invoke(
        main, ["--name", "bench", "bench", "--flows", "8", "--rounds", "1", "-o", "json"]
    )
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert [entry["name"] for entry in report["baselines"]] == list(BASELINES)
    assert {(entry["service"], entry["packet"]) for entry in report["services"]} == {
        ("203.0.113.10:80/tcp", "established"),
        ("203.0.113.10:80/tcp", "syn"),
        ("203.0.113.10:81/tcp", "established"),
        ("203.0.113.10:81/tcp", "syn"),
        ("203.0.113.10:53/udp", "udp"),
    }
    for entry in report["services"]:
        assert entry["action"] in {"tx", "redirect"}
        assert entry["median_ns"] >= entry["min_ns"] - entry["gross_ns"]
    assert _written(running) == before


def test_without_a_gateway_the_bench_says_so() -> None:
    """No pins: the message says what to start, the exit code is 1."""
    result = CliRunner().invoke(main, ["bench"])
    assert result.exit_code == 1
    assert "lb-xdp run" in result.output


def test_the_script_prints_figures_for_the_rows_asked_for(wire: Wire) -> None:
    """A row comes with its baselines, for each number of flows, as a figure each."""
    (group,) = timing.rows("^forwarding: dsr established, IPv4$")
    assert [row.name for row in group][-1] == "dsr established"
    with Harness(max_flows=1024) as harness:
        found = timing.Bench(wire, harness, ["1", "1k"], rounds=1).group(group)
    assert {title for title, _ in found} == {row.title for row in group}
    assert {label for _, label in found} == {"1", "1k"}
