"""What modes, algorithms and `port: any` cannot do is refused, with the reason and another way."""

from __future__ import annotations

import copy
from io import StringIO
from typing import Any

import pytest
from ruamel.yaml import YAML

from lb_xdp.config import MAX_SNAT_ADDRESSES, parse_config
from lb_xdp.core.model import ANY_PORT, Config, Via
from lb_xdp.errors import InvalidConfigError

WEB: dict[str, Any] = {
    "name": "web",
    "vip": "203.0.113.10",
    "port": 80,
    "mode": "nat",
    "backends": [{"host": "10.0.0.11", "port": 80}],
    "health": "none",
}
ANY = WEB | {"name": "all", "port": "any", "backends": [{"host": "10.0.0.11"}]}
SIX = {"vip": "2001:db8::10", "backends": [{"host": "2001:db8::11", "port": 80}]}
SOURCES = {"snat_addresses": ["10.0.0.5"]}


def load(*services: dict[str, Any], **gateway: object) -> Config:
    document = {"gateway": {"interfaces": ["eth0"], **gateway}, "services": list(services)}
    return loaded(document)


def loaded(document: dict[str, Any]) -> Config:
    yaml = YAML()
    yaml.representer.ignore_aliases = lambda *_data: True
    text = StringIO()
    yaml.dump(copy.deepcopy(document), text)
    return parse_config(text.getvalue(), "lb.yaml")


def refused(*services: dict[str, Any], **gateway: object) -> str:
    """Return the only problem, without the file's name."""
    with pytest.raises(InvalidConfigError) as refusal:
        load(*services, **gateway)
    (problem,) = refusal.value.problems
    return f"{problem.path}: {problem.message}"


@pytest.mark.parametrize("mode", ["dsr", "ipip", "gue"])
def test_a_mode_that_keeps_ports_says_so(mode: str) -> None:
    """Another port at the backend needs nat; the message has the reason and both ways out."""
    said = refused(WEB | {"mode": mode, "backends": [{"host": "10.0.0.11", "port": 8080}]})
    assert said.startswith("services[0].backends[0].port: 8080 is not 80, the port of the service")
    assert f": {mode} " in said
    assert "the server answers the client itself" in said
    assert said.endswith("use port 80 here, or `mode: nat` there")


@pytest.mark.parametrize("mode", ["dsr", "nat", "fullnat"])
@pytest.mark.parametrize(
    ("vip", "host", "family"),
    [("203.0.113.10", "2001:db8::11", "IPv4"), ("2001:db8::10", "10.0.0.11", "IPv6")],
)
def test_a_mode_of_one_family_names_the_tunnels(
    mode: str, vip: str, host: str, family: str
) -> None:
    """A backend of the other family is refused where it stands; ipip and gue carry it."""
    service = WEB | {"mode": mode, "vip": vip, "backends": [{"host": host, "port": 80}]}
    said = refused(service, snat_addresses=["10.0.0.5", "2001:db8::5"])
    assert said.startswith(f"services[0].backends[0].host: {host} is not of the family of {vip}")
    assert f": {mode} " in said
    assert f"give the server's {family} address, or use `mode: ipip` or `mode: gue`" in said


@pytest.mark.parametrize("mode", ["ipip", "gue"])
@pytest.mark.parametrize("vip", ["203.0.113.10", "2001:db8::10"])
def test_tunnels_carry_both_families_at_once(mode: str, vip: str) -> None:
    """One pool may hold backends of both families behind a tunnel."""
    backends = [{"host": "10.0.0.11", "port": 80}, {"host": "2001:db8::11", "port": 80}]
    (found,) = load(WEB | {"mode": mode, "vip": vip, "backends": backends}).services
    assert [backend.address.version for backend in found.pool.backends] == [4, 6]


def test_fullnat_needs_a_source_of_its_family() -> None:
    """Without an address to send from there is nothing to translate to."""
    expected = "fullnat needs an address to send from: give an IPv{} address of this gateway in"
    fullnat = WEB | {"mode": "fullnat"}
    assert expected.format(4) in refused(fullnat)
    assert expected.format(6) in refused(fullnat | SIX, **SOURCES)
    (found,) = load(fullnat, **SOURCES).services
    assert found.why_tracked is not None
    assert found.why_tracked.startswith("fullnat needs")


def test_an_unreadable_source_makes_no_second_message() -> None:
    """A typo in the list is told once, not as a source that lacks as well."""
    said = refused(WEB | {"mode": "fullnat"}, snat_addresses=["10.0.0.555"])
    assert said.startswith("gateway.snat_addresses[0]: ")


def test_a_source_that_nothing_uses_is_a_warning() -> None:
    """An address without a service of its family is probably a leftover."""
    config = load(WEB | {"mode": "fullnat"}, snat_addresses=["10.0.0.5", "2001:db8::5"])
    (warning,) = config.warnings
    assert "snat_addresses[1]: no service with `mode: fullnat` uses an IPv6 source" in warning


@pytest.mark.parametrize(
    ("host", "network"), [("172.16.3.4", "172.16.0.0/16"), ("100::4", "100::/64")]
)
def test_a_tunnel_backend_among_the_outer_sources_is_a_warning(host: str, network: str) -> None:
    """A server may drop packets from its own address or network; another prefix helps."""
    service = WEB | {"mode": "gue", "backends": [{"host": host, "port": 80}]}
    (warning,) = load(service).warnings
    assert f"services[0].backends[0].host: {host} lies in {network}, which outer source" in warning
    elsewhere = {"ipv4": "10.99.0.0/16", "ipv6": "2001:db8:99::/48"}
    assert load(service, tunnel_sources=elsewhere).warnings == ()
    assert load(WEB).warnings == ()


def test_sources_have_a_limit() -> None:
    """More addresses than the program has room for are refused."""
    sources = [f"10.1.{n // 250}.{n % 250 + 1}" for n in range(MAX_SNAT_ADDRESSES + 1)]
    said = refused(WEB | {"mode": "fullnat"}, snat_addresses=sources)
    assert said == "gateway.snat_addresses: 257 addresses; at most 256 are allowed"


def test_fullnat_cannot_take_any_port() -> None:
    """Source ports are the gateway's to allocate, so one port it is."""
    said = refused(ANY | {"mode": "fullnat"}, **SOURCES)
    assert said.startswith("services[0].port: `any` does not go with `mode: fullnat`: the ports")
    assert "`mode: nat`" in said


def test_any_port_takes_no_port_of_a_backend() -> None:
    """Packets keep the client's port, so a port of the backend would mean nothing."""
    said = refused(ANY | {"backends": [{"host": "10.0.0.11", "port": 80}]})
    assert said.startswith("services[0].backends[0].port: the service on line")
    assert "keep the port that the client chose; leave this one out" in said


def test_one_port_needs_a_port_of_each_backend() -> None:
    """What `port: any` leaves out is missing elsewhere."""
    said = refused(WEB | {"backends": [{"host": "10.0.0.11"}]})
    assert said == "services[0].backends[0]: the key `port` is missing: the server's port"


@pytest.mark.parametrize("port", [{}, {"port": 80}])
def test_a_pool_cannot_serve_any_port_and_one(port: dict[str, int]) -> None:
    """A pool either has ports or has none: the service of any port needs its own."""
    shared = {"vip": "203.0.113.10", "mode": "dsr", "pool": "p"}
    document = {
        "gateway": {"interfaces": ["eth0"]},
        "pools": [{"name": "p", "health": "none", "backends": [{"host": "10.0.0.11", **port}]}],
        "services": [{"name": "a", "port": 80, **shared}, {"name": "b", "port": "any", **shared}],
    }
    with pytest.raises(InvalidConfigError, match="give that service a pool of its own") as refusal:
        loaded(document)
    assert len(refusal.value.problems) == 1


def test_a_pool_without_users_needs_ports_as_well() -> None:
    """A missing port is told although no service uses the pool yet."""
    document = {
        "gateway": {"interfaces": ["eth0"]},
        "pools": [{"name": "idle", "backends": [{"host": "10.0.0.12"}]}],
        "services": [WEB],
    }
    with pytest.raises(InvalidConfigError, match="the key `port` is missing"):
        loaded(document)


@pytest.mark.parametrize("health", [None, {}, {"type": "http"}])
def test_any_port_needs_a_port_for_probes(health: dict[str, str] | None) -> None:
    """Probes have to go somewhere, or nowhere by intention."""
    service = {key: value for key, value in ANY.items() if key != "health"}
    said = refused(service if health is None else service | {"health": health})
    assert "`port: any`, so probes need a `port:` of their own; or use `health: none`" in said
    assert load(service | {"health": {"port": 80}}).services[0].pool.health.port == 80


def test_one_port_wins_over_any_port() -> None:
    """A VIP may have a service for one port, and one for all others."""
    narrow, wide = load(WEB, ANY).services
    assert (narrow.port, wide.port) == (80, ANY_PORT)


def test_any_port_can_stand_only_once() -> None:
    """Two services for any port of one VIP and protocol are the same service twice."""
    said = refused(ANY, ANY | {"name": "again", "backends": [{"host": "10.0.0.12"}]})
    assert "203.0.113.10:any/tcp is taken by the service on line" in said
    assert load(ANY, ANY | {"name": "udp", "protocol": "udp"})


@pytest.mark.parametrize(
    "other",
    [
        ANY | {"name": "other", "vip": "203.0.113.11"},
        WEB | {"vip": "203.0.113.11"},
        WEB | {"port": 8000},
    ],
)
def test_replies_must_lead_to_one_vip(other: dict[str, Any]) -> None:
    """Where a reply in nat could have come for two services, the configuration is refused."""
    for services in ((ANY, other), (other, ANY)):
        said = refused(*services)
        assert ".port: a reply of 10.0.0.11 could as well belong to the service on line" in said
        assert "use another address of the server, or `mode: dsr`" in said


@pytest.mark.parametrize(
    "change", [{"mode": "dsr"}, {"protocol": "udp"}, {"backends": [{"host": "10.0.0.12"}]}]
)
def test_replies_that_can_be_told_apart_are_fine(change: dict[str, Any]) -> None:
    """Another mode, protocol or address of the server is enough."""
    assert load(ANY, ANY | {"name": "other", "vip": "203.0.113.11"} | change)


@pytest.mark.parametrize(
    ("change", "needs"),
    [
        ({"algorithm": "round_robin"}, "`algorithm: round_robin`, which needs to know every flow"),
        ({"algorithm": "least_connections"}, "`algorithm: least_connections`"),
        ({"algorithm": "random"}, "`algorithm: random`"),
        ({"mode": "fullnat"}, "`mode: fullnat`, which finds the way back in the record"),
        ({"backends": [WEB["backends"][0] | {"max_connections": 9}]}, "max_connections of 10.0.0."),
        ({"session": {"flows": "none", "affinity": "client_ip"}}, "`affinity: client_ip`"),
    ],
)
def test_what_needs_records_refuses_to_go_without(change: dict[str, Any], needs: str) -> None:
    """`flows: none` is refused where every flow must be known, with both ways out."""
    said = refused(
        WEB | {"session": {"flows": "none"}} | change, **(SOURCES if change.get("mode") else {})
    )
    assert said.startswith(f"services[0].session.flows: `none` does not go with {needs}")
    assert "; leave it out, or " in said


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"protocol": "udp"}, "`protocol: udp`, which has no RST"),
        ({"session": {"flows": "none"}}, "`flows: none`: without records nobody knows which"),
    ],
)
def test_reset_needs_tcp_and_records(change: dict[str, Any], why: str) -> None:
    """`on_backend_down: reset` is refused where nobody could be told, or nobody knows whom."""
    said = refused(WEB | {"on_backend_down": "reset"} | change)
    assert said.startswith(f"services[0].on_backend_down: `reset` does not go with {why}")


@pytest.mark.parametrize("algorithm", ["maglev", "source_hash"])
def test_hashing_goes_without_records(algorithm: str) -> None:
    """Where the packet names its backend, records can be declined."""
    session = {"flows": "none"}
    (found,) = load(WEB | {"algorithm": algorithm, "session": session}).services
    assert not found.session.flows
    assert not found.tracked


@pytest.mark.parametrize("mode", ["dsr", "ipip", "gue"])
def test_probes_can_go_the_way_of_modes_that_keep_the_vip(mode: str) -> None:
    """Where the packet reaches the backend as one to the VIP, a probe can be the same."""
    config = load(WEB | {"mode": mode, "health": {"type": "tcp", "via": "datapath"}})
    assert config.services[0].pool.health.via is Via.DATAPATH


@pytest.mark.parametrize("mode", ["nat", "fullnat"])
def test_probes_through_a_translation_are_refused(mode: str) -> None:
    """The backend's own address is asked by a direct probe already, and the message says so."""
    service = WEB | {"mode": mode, "health": {"type": "tcp", "via": "datapath"}}
    said = refused(service, **SOURCES)
    assert said.startswith(f"services[0].health.via: `datapath` does not go with `mode: {mode}`")
    assert "which `via: direct` asks already" in said


def test_probes_of_the_vip_have_no_host_of_their_own() -> None:
    """`host` would be another address than the VIP."""
    health = {"type": "tcp", "via": "datapath", "host": "10.0.0.12"}
    said = refused(WEB | {"mode": "dsr", "health": health})
    assert said.startswith("services[0].health.host: does not go with `via: datapath`")
