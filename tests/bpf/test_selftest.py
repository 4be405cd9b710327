"""The trial before a swap: a right program passes it, a wrong one is refused with the reason."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lb_xdp.core.desired import BackendId
from lb_xdp.core.model import (
    ANY_PORT,
    Algorithm,
    Detect,
    Mode,
    NoBackend,
    OnBackendDown,
    Protocol,
    Service,
)
from lb_xdp.core.settle import MARKED, SEVERED, UNSETTLED, pack
from lb_xdp.datapath.blueprint import draw
from lb_xdp.datapath.selftest import Tried, verify_generation
from lb_xdp.errors import SelfTestError
from tests.support.program import VIP6, LoadedProgram, Wire, service


def tried(loaded: LoadedProgram) -> Tried:
    return verify_generation(loaded.plan, loaded.generation, draw(loaded.plan).code)


@pytest.mark.parametrize(
    "services",
    [
        [service(Mode.DSR), service(Mode.DSR, 53, protocol=Protocol.UDP, vip=VIP6)],
        [service(Mode.IPIP, family=6), service(Mode.GUE, vip=VIP6)],
        [service(Mode.NAT, backend_port=8080), service(Mode.FULLNAT, 443, backend_port=8443)],
        [service(Mode.DSR, ANY_PORT, algorithm=Algorithm.SOURCE_HASH)],
        [service(Mode.DSR, algorithm=Algorithm.LEAST_CONNECTIONS, max_connections=10)],
        [service(Mode.NAT, backends=(9,), no_backend=NoBackend.REJECT)],
        [service(Mode.DSR, on_backend_down=OnBackendDown.RESET)],
        [service(Mode.NAT, detect=Detect()), service(Mode.IPIP, 443, detect=Detect())],
    ],
    ids=[
        "dsr",
        "tunnels",
        "translating",
        "any port",
        "least connections",
        "nobody",
        "reset",
        "watched",
    ],
)
def test_a_right_program_passes(wire: Wire, services: list[Service]) -> None:
    """Of every packet that is tried the model knows the end, and the program comes to the same."""
    with LoadedProgram(wire, *services, down=(9,)) as loaded:
        result = tried(loaded)
    assert result.packets == result.foretold > 200


def test_a_trial_leaves_no_trace(wire: Wire) -> None:
    """Counters, flows and answers spent are those of twins."""
    with LoadedProgram(wire, service(Mode.FULLNAT)) as loaded:
        before = loaded.reasons()
        tried(loaded)
        assert loaded.reasons() == before
        for name in ("flows", "returns", "fragments"):
            keys, _ = loaded.maps[name].read_all()
            assert len(keys) == 0, name


def spoil(loaded: LoadedProgram, which: BackendId, **wrong: object) -> None:
    """Make the kernel's record of a backend differ from the plan's."""
    record = replace(loaded.plan.records[which], **wrong)  # type: ignore[arg-type]  # fields by name
    loaded.generation.write_record(which, loaded.plan.indices[which], record)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"mac": b"\2\0\0\0\0\x66"}, "02:00:00:00:00:66"),
        ({"ifindex": 0}, "found:    drop, no_egress"),
        ({"mtu": 100}, "found:    tx, too_big"),
    ],
    ids=["mac", "interface", "mtu"],
)
def test_a_wrong_program_is_refused(wire: Wire, wrong: dict[str, object], said: str) -> None:
    """A packet that ends otherwise is shown decoded, as it came, should be and was."""
    web = service(Mode.IPIP)
    with LoadedProgram(wire, web) as loaded:
        for number in (1, 2, 3):
            spoil(loaded, loaded.identity(web, number), **wrong)
        with pytest.raises(SelfTestError, match="what was forwarding goes on") as caught:
            tried(loaded)
    assert said in str(caught.value)
    assert "expected: redirect, forwarded, to 203.0.113.10:80/tcp -> 10.2.0.1" in str(caught.value)


def test_interfaces_that_take_no_packets_are_no_hindrance(wire: Wire) -> None:
    """A veth without a program has no queue for XDP yet: then packets come in by loopback."""
    with LoadedProgram(wire, service(Mode.DSR)) as loaded:
        loaded.plan = replace(loaded.plan, interfaces={})
        for number in (1, 2, 3):
            spoil(loaded, loaded.identity(service(Mode.DSR), number), ifindex=1)
        loaded.plan = replace(
            loaded.plan,
            records={key: replace(r, ifindex=1) for key, r in loaded.plan.records.items()},
        )
        result = tried(loaded)
    assert result.packets == result.foretold


@pytest.mark.parametrize("algorithm", [Algorithm.MAGLEV, Algorithm.ROUND_ROBIN])
@pytest.mark.parametrize("state", [UNSETTLED, MARKED, SEVERED])
def test_a_trial_of_rings_that_are_not_settled(
    wire: Wire, algorithm: Algorithm, state: int
) -> None:
    """A generation is also replaced while slots settle, and after a backend died."""
    web = service(
        Mode.DSR, backends=(1, 9), algorithm=algorithm, on_backend_down=OnBackendDown.RESET
    )
    with LoadedProgram(wire, web, down=(9,)) as loaded:
        plan = loaded.plan
        first, dead = (np.uint32(plan.indices[loaded.identity(web, n)]) for n in (1, 9))
        former = first if state == UNSETTLED else dead if state == SEVERED else np.uint32(0)
        slots = pack(np.full_like(plan.rings[web.key].slots, first), former, np.uint32(state))
        image = plan.rings[web.key]._replace(held=slots)
        loaded.generation.write_ring(web.key, image)
        loaded.plan = replace(plan, rings={web.key: image})
        result = tried(loaded)
    assert result.packets == result.foretold > 200
