"""The samples of /metrics, their names, and the health routes."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from lb_xdp.core.model import Listen
from lb_xdp.core.snapshot import ChangeStatus, Snapshot, State
from lb_xdp.errors import AddressInUseError, HostError, MapError
from lb_xdp.metrics.exposition import Exposition
from lb_xdp.metrics.web import Source, serve
from tests.support.snapshots import SNAPSHOT, TROUBLED, WEB, WEB1

DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"
ANY_PORT = Listen("127.0.0.1", 0)
OPENMETRICS = "application/openmetrics-text; version=1.0.0"

# DESIGN section 6, written out: these names are a promise.
PROMISED = {
    "lb_xdp_backend_packets_total": {"service", "backend"},
    "lb_xdp_backend_bytes_total": {"service", "backend"},
    "lb_xdp_backend_flows_total": {"service", "backend"},
    "lb_xdp_backend_up": {"service", "backend"},
    "lb_xdp_backend_weight": {"service", "backend"},
    "lb_xdp_backend_state": {"service", "backend", "state"},
    "lb_xdp_backend_availability_ratio": {"service", "backend", "window"},
    "lb_xdp_backend_probe_duration_seconds_bucket": {"service", "backend", "le"},
    "lb_xdp_packets_total": {"verdict", "reason"},
    "lb_xdp_service_backends": {"service", "state"},
    "lb_xdp_failovers_total": set(),
    "lb_xdp_ring_build_seconds": set(),
    "lb_xdp_flow_table_entries": set(),
    "lb_xdp_flow_table_capacity": set(),
    "lb_xdp_config_last_reload_success": set(),
    "lb_xdp_config_last_reload_timestamp_seconds": set(),
    "lb_xdp_config_is_file": set(),
    "lb_xdp_datapath_info": {"interface", "mode", "program_id", "version"},
}

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def samples_of(snapshot: Snapshot, exposition: Exposition | None = None) -> Samples:
    """Return every sample of a scrape in text form, by name and labels."""
    body, _ = (exposition or Exposition()).render("", snapshot)
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    """Return one sample's value."""
    return samples[name, frozenset(labels.items())]


def telling(snapshot: Snapshot) -> Source:
    """Return a source that always tells the same."""

    async def source() -> Snapshot:
        return snapshot

    return source


@pytest.fixture
def exposition() -> Exposition:
    exposition = Exposition()
    exposition.observe_probe("web", "web1", 0.004)
    return exposition


async def get(listen: Listen, path: str, **headers: str) -> tuple[int, str, str]:
    """Return status, content type and body of one GET."""
    url = f"http://{listen.host}:{listen.port}{path}"
    async with aiohttp.ClientSession() as session, session.get(url, headers=headers) as answer:
        return answer.status, answer.headers["Content-Type"], await answer.text()


def test_every_promised_name_is_there_with_its_labels(exposition: Exposition) -> None:
    """The names and labels of the contract are exposed, neither fewer nor other labels."""
    found = {
        name: {label for label, _ in labels} for name, labels in samples_of(SNAPSHOT, exposition)
    }
    assert {name: found.get(name) for name in PROMISED} == PROMISED


def test_values_are_the_snapshots(exposition: Exposition) -> None:
    """Counters, states and figures arrive as the snapshot has them, to the packet."""
    samples = samples_of(SNAPSHOT, exposition)
    web1 = {"service": "web", "backend": "web1"}
    assert value(samples, "lb_xdp_backend_packets_total", **web1) == WEB1.packets
    assert value(samples, "lb_xdp_backend_bytes_total", **web1) == WEB1.bytes
    assert value(samples, "lb_xdp_backend_flows_total", **web1) == WEB1.flows
    assert value(samples, "lb_xdp_backend_reply_packets_total", **web1) == WEB1.reply_packets
    assert value(samples, "lb_xdp_backend_reply_bytes_total", **web1) == WEB1.reply_bytes
    assert value(samples, "lb_xdp_backend_weight", **web1) == 100
    assert value(samples, "lb_xdp_backend_slots", **web1) == WEB1.slots
    assert value(samples, "lb_xdp_backend_up", **web1) == 1
    assert value(samples, "lb_xdp_backend_up", service="web", backend="10.0.0.13:8080") == 0
    assert value(samples, "lb_xdp_service_backends", service="web", state="up") == 2
    assert value(samples, "lb_xdp_service_backends", service="web", state="maint") == 0
    assert value(samples, "lb_xdp_packets_total", verdict="pass", reason="not_vip") == 1_200
    assert value(samples, "lb_xdp_failovers_total") == 3
    assert value(samples, "lb_xdp_ring_build_seconds") == 0.0125
    assert value(samples, "lb_xdp_ready") == 1
    assert value(samples, "lb_xdp_api_strangers_total") == 5
    labels = {"interface": "eth1", "mode": "generic", "program_id": "52", "version": "0.1.0"}
    assert value(samples, "lb_xdp_datapath_info", **labels) == 1


@pytest.mark.parametrize("state", State)
def test_exactly_one_state_is_set(state: State) -> None:
    """A backend's state is 1 for the state it is in and 0 for the others; only up counts as up."""
    backend = replace(WEB1, state=state)
    service = replace(WEB, backends=(backend,))
    samples = samples_of(replace(SNAPSHOT, services=(service,)))
    web1 = {"service": "web", "backend": "web1"}
    states = {other: value(samples, "lb_xdp_backend_state", **web1, state=other) for other in State}
    assert states == {other: float(other is state) for other in State}
    assert value(samples, "lb_xdp_backend_up", **web1) == float(state is State.UP)


def test_refused_reload_is_visible() -> None:
    """After a refused reload success is 0 and the time is that of the refusal."""
    samples = samples_of(TROUBLED)
    assert value(samples, "lb_xdp_config_last_reload_success") == 0
    assert value(samples, "lb_xdp_config_is_file") == 1
    by_hand = replace(TROUBLED, change=ChangeStatus("new.yaml", "lb.yaml", "ann", 1.0))
    assert value(samples_of(by_hand), "lb_xdp_config_is_file") == 0
    when = value(samples, "lb_xdp_config_last_reload_timestamp_seconds")
    assert when == TROUBLED.last_reload.timestamp_s


async def test_one_snapshot_per_scrape() -> None:
    """A scrape looks at the gateway once, so all that it tells is of one moment."""
    taken: list[Snapshot] = []

    async def source() -> Snapshot:
        taken.append(SNAPSHOT)
        return SNAPSHOT

    async with serve(ANY_PORT, Exposition(), source) as listen:
        assert not taken
        await get(listen, "/metrics")
        assert len(taken) == 1


def test_probe_durations_land_in_buckets_and_can_be_forgotten(exposition: Exposition) -> None:
    """A probe of 4 ms is in the 5 ms bucket and above; a backend that leaves takes its series."""
    samples = samples_of(SNAPSHOT, exposition)
    web1 = {"service": "web", "backend": "web1"}
    name = "lb_xdp_backend_probe_duration_seconds"
    assert value(samples, f"{name}_bucket", **web1, le="0.0025") == 0
    assert value(samples, f"{name}_bucket", **web1, le="0.005") == 1
    assert value(samples, f"{name}_sum", **web1) == pytest.approx(0.004)
    exposition.forget("web", "web1")
    exposition.forget("web", "never seen")
    assert not [key for key in samples_of(SNAPSHOT, exposition) if key[0].startswith(name)]


def test_two_expositions_share_nothing(exposition: Exposition) -> None:
    """Two gateways in one process do not see each other's probes."""
    name = "lb_xdp_backend_probe_duration_seconds_count"
    assert name in {key[0] for key in samples_of(SNAPSHOT, exposition)}
    assert name not in {key[0] for key in samples_of(SNAPSHOT)}


def test_openmetrics_is_well_formed(exposition: Exposition) -> None:
    """A scraper that prefers OpenMetrics gets it, and a strict parser takes all of it."""
    body, content_type = exposition.render(OPENMETRICS, SNAPSHOT)
    assert content_type.startswith("application/openmetrics-text")
    parse = openmetrics.text_string_to_metric_families
    assert list(parse(body.decode()))  # type: ignore[no-untyped-call] # untyped upstream


def test_documentation_lists_exactly_what_is_exposed(exposition: Exposition) -> None:
    """docs/metrics.md names every metric, none that does not exist, and each has a help text."""
    body, _ = exposition.render("", SNAPSHOT)
    families = list(text_string_to_metric_families(body.decode()))
    assert all(family.documentation for family in families)
    suffix = {"counter": "_total"}
    exposed = {family.name + suffix.get(family.type, "") for family in families}
    documented = re.findall(r"^\| `(lb_xdp_\w+)`", DOCS.read_text(), re.MULTILINE)
    assert sorted(documented) == sorted(exposed)


async def test_metrics_over_http(exposition: Exposition) -> None:
    """/metrics answers in the form that the Accept header prefers, / links the routes."""
    async with serve(ANY_PORT, exposition, telling(SNAPSHOT)) as listen:
        status, content_type, text = await get(listen, "/metrics")
        assert (status, content_type.split(";")[0]) == (HTTPStatus.OK, "text/plain")
        assert "# HELP lb_xdp_backend_packets_total" in text
        _, content_type, text = await get(listen, "/metrics", Accept=OPENMETRICS)
        assert content_type.startswith("application/openmetrics-text")
        assert text.endswith("# EOF\n")
        assert "/readyz" in (await get(listen, "/"))[2]
        assert (await get(listen, "/nothing"))[0] == HTTPStatus.NOT_FOUND


async def test_healthy_and_ready(exposition: Exposition) -> None:
    """A gateway that forwards is healthy and ready."""
    async with serve(ANY_PORT, exposition, telling(SNAPSHOT)) as listen:
        assert (await get(listen, "/healthz"))[::2] == (HTTPStatus.OK, "ok\n")
        assert (await get(listen, "/readyz"))[::2] == (HTTPStatus.OK, "ready\n")


async def test_unready_and_unhealthy_say_why() -> None:
    """Neither route says only no: notices, a missing program and unprobed backends are named."""
    unknown = tuple(replace(WEB1, name=f"b{number}", state=State.UNKNOWN) for number in range(7))
    shown = replace(
        TROUBLED,
        datapath=replace(TROUBLED.datapath, programs=()),
        services=(replace(WEB, backends=unknown),),
    )
    async with serve(ANY_PORT, Exposition(), telling(shown)) as listen:
        status, _, text = await get(listen, "/healthz")
        assert (status, text) == (503, "no XDP program is attached to any interface\n")
        status, _, text = await get(listen, "/readyz")
        assert status == 503
        assert TROUBLED.notices[0] in text
        assert "no XDP program" in text
        assert "not probed yet: web/b0, web/b1, web/b2, web/b3, web/b4 and 2 more" in text


@pytest.mark.parametrize("path", ["/metrics", "/healthz", "/readyz"])
async def test_unreadable_maps_are_a_503_with_the_reason(path: str) -> None:
    """When the kernel's maps cannot be read every route answers 503 and says so."""

    async def source() -> Snapshot:
        raise MapError("cannot read map lb_count: bad file descriptor")

    async with serve(ANY_PORT, Exposition(), source) as listen:
        status, _, text = await get(listen, path)
    assert (status, text) == (503, "cannot read map lb_count: bad file descriptor\n")


async def test_address_in_use_names_key_address_and_remedy(exposition: Exposition) -> None:
    """A taken port gives an error that names the key, the address and what to do."""
    async with serve(ANY_PORT, exposition, telling(SNAPSHOT)) as taken:
        with pytest.raises(AddressInUseError) as caught:
            await enter(lambda: serve(taken, exposition, telling(SNAPSHOT)))
    message = str(caught.value)
    assert message.startswith("gateway.metrics.listen: ")
    assert f"127.0.0.1:{taken.port}" in message
    assert "choose another port" in message


async def test_foreign_address_is_refused_with_the_remedy(exposition: Exposition) -> None:
    """An address that no interface has is refused with the key and the remedy."""
    foreign = Listen("192.0.2.1", 9464)
    with pytest.raises(HostError, match=r"gateway\.metrics\.listen: .*192\.0\.2\.1:9464.*set"):
        await enter(lambda: serve(foreign, exposition, telling(SNAPSHOT)))


async def enter(make: Callable[[], Any]) -> None:
    """Open and close an asynchronous context."""
    async with make():
        pass
