"""The flow table's housekeeping, while packets come in between its steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from threading import Thread

import pytest
from scapy.layers.inet import IP, TCP

from lb_xdp.core.collect import over as judge
from lb_xdp.core.desired import traits
from lb_xdp.core.model import Algorithm, BackendKey, FlowTable, Mode, Session
from lb_xdp.core.settle import UNSETTLED
from lb_xdp.datapath import counters
from lb_xdp.datapath import flows as module
from lb_xdp.datapath.clock import jiffies, jiffies_per_s
from lb_xdp.datapath.flows import Collected, collect
from lb_xdp.datapath.maps import BpfMap, Values
from tests.bpf.test_tracking import number_of, put, reply, request
from tests.support.program import (
    INNER,
    LoadedProgram,
    Wire,
    backend_address,
    service,
)

LATER_S = 20


def look(loaded: LoadedProgram, times: FlowTable = FlowTable()) -> Collected:  # noqa: B008 - frozen
    """Look at the flow table as the controller does."""
    services = {service.key: traits(service) for service in loaded.config.services}
    maps = loaded.maps
    backends = loaded.generation.maps["backends"]
    return collect(maps, backends, times=times, services=services, affinity_s={})


@pytest.fixture
def meanwhile(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Let a look find all records 20 s older, and something happen after it has read them."""

    def set_up(happens: Callable[[], object]) -> None:
        def over(*args: object, **options: object) -> object:
            happens()
            return judge(*args, **options)  # type: ignore[arg-type]  # passed through

        later = LATER_S * jiffies_per_s()
        monkeypatch.setattr(module, "jiffies", lambda: (jiffies() + later) % 2**32)
        monkeypatch.setattr(module, "over", over)

    return set_up


@pytest.mark.parametrize("mode", [Mode.DSR, Mode.FULLNAT])
def test_a_port_used_anew_while_records_are_removed(
    wire: Wire, mode: Mode, meanwhile: Callable[[Callable[[], object]], None]
) -> None:
    """A flow that begins where an ended one was read keeps its record, and its port."""
    web = service(mode, algorithm=Algorithm.ROUND_ROBIN, backends=[1, 2])
    with LoadedProgram(wire, web) as loaded:
        for flags in ("S", "A", "R"):
            loaded.run(request(flags))
        begun = []
        meanwhile(lambda: begun.append(loaded.run(request("S"))))
        found = look(loaded)
        assert (found.removed, found.entries, len(found.recorded[web.key])) == (0, 1, 1)
        number = number_of(begun[0])
        assert [number_of(loaded.run(request("A"))) for _ in range(3)] == [number] * 3
        if mode is Mode.FULLNAT:
            there = begun[0].packet[IP]
            back = reply(number, there.src, 80, there[TCP].sport, "SA")
            assert loaded.run(back, ingress=INNER).reason == "replied"


def test_a_port_of_an_ended_flow_used_anew_before_it_is_freed(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flow whose record has just been removed may begin anew with the port that it had."""
    web = service(Mode.FULLNAT, backends=[1])
    with LoadedProgram(wire, web) as loaded:
        for flags in ("S", "A", "R"):
            loaded.run(request(flags))
        begun = []
        later = LATER_S * jiffies_per_s()
        monkeypatch.setattr(module, "jiffies", lambda: (jiffies() + later) % 2**32)
        monkeypatch.setattr(
            module, "_charge_off", lambda *_: begun.append(loaded.run(request("S")))
        )
        assert look(loaded).removed == 1
        there = begun[0].packet[IP]
        back = reply(1, there.src, 80, there[TCP].sport, "SA")
        assert loaded.run(back, ingress=INNER).reason == "replied"


def test_a_port_left_over_from_another_backend(wire: Wire) -> None:
    """What the backend of an ended flow still says is not taken for the flow that came after it."""
    web = service(Mode.FULLNAT, algorithm=Algorithm.ROUND_ROBIN)
    with LoadedProgram(wire, web) as loaded:
        first = loaded.run(request("S"))
        for flags in ("A", "R"):
            loaded.run(request(flags))
        second = loaded.run(request("S"))
        loaded.run(request("A"))
        there = first.packet[IP]
        assert number_of(first) != number_of(second)
        assert there[TCP].sport == second.packet[TCP].sport
        late = reply(number_of(first), there.src, 80, there[TCP].sport, "RA")
        assert loaded.run(late, ingress=INNER).reason == "no_flow"
        look(loaded)
        assert len(loaded.maps["returns"].read_all()[0]) == 1


def test_a_half_closed_connection_goes_on(
    wire: Wire, meanwhile: Callable[[Callable[[], object]], None]
) -> None:
    """A client that has said all still hears the answer, where only its own side is seen."""
    web = service(Mode.DSR, algorithm=Algorithm.ROUND_ROBIN)
    with LoadedProgram(wire, web) as loaded:
        ports = range(5000, 5009)
        begun = [number_of(loaded.run(request("S", port))) for port in ports]
        for port in ports:
            loaded.run(request("A", port))
            loaded.run(request("FA", port))
        meanwhile(lambda: None)
        look(loaded)
        assert [number_of(loaded.run(request("A", port))) for port in ports] == begun


@pytest.mark.parametrize(
    ("other", "told_by", "let_in"),
    [
        (True, "controller", 3),
        (True, "program", 3),  # the three flows are placed anew there by what ends them
        (False, "controller", 3),
        (False, "program", 6),  # the three that end were not counted any more
    ],
)
def test_an_index_given_to_another_backend_owes_nothing(
    wire: Wire, told_by: str, let_in: int, *, other: bool
) -> None:
    """A backend that comes to an index whose former holder had connections has its whole limit.

    One that was taken out and put back in is not full for ever when its older flows end.
    """
    web = service(Mode.NAT, backends=[1], max_connections=3)
    with LoadedProgram(wire, web) as loaded:
        for port in range(5000, 5003):
            assert loaded.run(request("S", port)).reason == "forwarded"
            loaded.run(request("A", port))
        was = loaded.identity(web, 1)
        index = loaded.plan.indices[was]
        key = BackendKey(backend_address(5), was.backend.port) if other else was.backend
        counters.reset(loaded.maps, [index])
        record = loaded.desired.records[was]
        loaded.generation.write_record(was._replace(backend=key), index, record)
        if told_by == "controller":
            assert look(loaded).removed == (3 if other else 0)
        else:
            for port in range(5000, 5003):
                assert loaded.run(request("R", port)).reason == "forwarded"
        sent = [loaded.run(request("S", port)).reason for port in range(6000, 6010)]
        assert sent == ["forwarded"] * let_in + ["backends_full"] * (10 - let_in)


def test_a_backend_is_given_back_connections_while_its_limit_changes(
    wire: Wire, meanwhile: Callable[[Callable[[], object]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look charges off what ended in silence, in its thread, while the controller writes."""
    web = service(Mode.DSR, backends=[1], max_connections=3)
    with LoadedProgram(wire, web) as loaded:
        loaded.run(request("S"))
        limits, read = loaded.maps["limits"], BpfMap.read
        meanwhile(lambda: None)
        looks: list[Thread] = []

        def slow(self: BpfMap, key: object) -> Values | None:
            held = read(self, key)
            if self is limits and not looks:
                looks.append(Thread(target=look, args=(loaded,)))
                looks[0].start()
                looks[0].join(0.5)  # it has to wait for the writer
            return held

        monkeypatch.setattr(BpfMap, "read", slow)
        identity = loaded.identity(web, 1)
        record = replace(loaded.desired.records[identity], limit=5)
        loaded.generation.write_record(identity, loaded.plan.indices[identity], record)
        looks[0].join()
        assert loaded.counts(web, 1).connections == 0
        _, held = limits.read_all()
        assert held["connections"][loaded.plan.indices[identity]] == 5


def test_records_of_a_service_that_records_no_more(wire: Wire) -> None:
    """They go at once; those of other services stay."""
    web, other = service(Mode.DSR), service(Mode.DSR, 443, name="other")
    with LoadedProgram(wire, web, other) as loaded:
        for one in (web, other):
            put(loaded, one, 2, UNSETTLED)
            frame = request("A")
            frame[TCP].dport = one.port
            assert number_of(loaded.run(frame)) == 2
        told = replace(web, session=Session(flows=False)), other
        loaded.config = replace(loaded.config, services=told)
        found = look(loaded)
        assert (found.removed, found.entries) == (1, 1)
        assert loaded.maps["flows"].read_all()[0]["destination_port"].tolist() == [443]
