"""The kernel's switches that decide whether it forwards what the program hands it."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest

from lb_xdp.core.model import (
    Address,
    CheckKind,
    HealthCheck,
    Mode,
    Pool,
    Protocol,
    Service,
    ServiceName,
)
from lb_xdp.errors import InterfaceError
from lb_xdp.netlink.host import (
    accept_local,
    forwarding_enabled,
    forwarding_obstacles,
    host_notices,
    ipv6_forwarding_enabled,
    rp_filter,
)
from tests.support.lab import Host, Lab

FOUR, SIX = IPv4Address("203.0.113.11"), IPv6Address("2001:db8::11")


@pytest.fixture
def gateway() -> Iterator[Host]:
    """A host with two interfaces, and the test on it."""
    with Lab() as lab:
        gateway, other = lab.host("gateway"), lab.host("other")
        for interface in ("eth0", "eth1"):
            lab.cable(gateway, interface, other, interface)
        with gateway.inside():
            yield gateway


def test_reads_the_switches_of_the_host(gateway: Host) -> None:
    """Forwarding, accept_local and rp_filter are read as the kernel combines them."""
    gateway.sysctl(conf__all__rp_filter=0, conf__eth0__rp_filter=1, conf__eth1__rp_filter=0)
    gateway.sysctl(conf__eth0__forwarding=0, conf__eth1__forwarding=1)
    assert (forwarding_enabled("eth0"), forwarding_enabled("eth1")) == (False, True)
    assert (rp_filter("eth0"), rp_filter("eth1")) == (1, 0)
    assert not accept_local("eth0")
    gateway.sysctl(conf__all__accept_local=1)
    assert accept_local("eth0")
    with pytest.raises(InterfaceError, match="no interface eth7"):
        forwarding_enabled("eth7")


def service_of(vip: Address, mode: Mode) -> Service:
    pool = Pool("web", (), HealthCheck(CheckKind.NONE))
    return Service(ServiceName("web"), vip, 80, Protocol.TCP, mode, pool)


@pytest.mark.parametrize("mode", [Mode.NAT, Mode.FULLNAT])
def test_translation_needs_forwarding_of_its_family(gateway: Host, mode: Mode) -> None:
    """IPv4 is switched by interface, IPv6 for all; each is asked for by services of its family."""
    gateway.sysctl(conf__eth0__forwarding=0, conf__eth1__forwarding=1)
    four, six = service_of(FOUR, mode), service_of(SIX, mode)
    both = ("eth0", "eth1")
    assert not ipv6_forwarding_enabled()
    (first,) = forwarding_obstacles([four], both)
    assert first.startswith(f"mode: {mode} needs IPv4 forwarding on eth0: sysctl -w net.ipv4.conf.")
    (second,) = forwarding_obstacles([six], both)
    assert "sysctl -w net.ipv6.conf.all.forwarding=1" in second
    assert forwarding_obstacles([four, six], both) == [first, second]
    gateway.run("sysctl", "-q", "-w", "net.ipv6.conf.all.forwarding=1")
    assert forwarding_obstacles([six], both) == []
    assert forwarding_obstacles([service_of(FOUR, Mode.IPIP)], both) == []


def test_notices_tell_what_stands_in_the_way_and_the_remedy(tmp_path: Path) -> None:
    """A VIP that is local and a strict filter are told for nat, with commands; dsr needs none."""
    for name, strict in (("all", 0), ("eth0.100", 1)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "accept_local").write_text("0\n")
        (tmp_path / name / "rp_filter").write_text(f"{strict}\n")
    vip = IPv4Address("203.0.113.10")
    nat = service_of(vip, Mode.NAT)
    local, strict_filter = host_notices([nat], ["eth0.100"], {vip}, conf=tmp_path)
    assert local.endswith("sysctl -w net.ipv4.conf.eth0/100.accept_local=1")
    assert strict_filter.endswith("sysctl -w net.ipv4.conf.eth0/100.rp_filter=2")
    assert len(host_notices([nat], ["eth0.100"], set(), conf=tmp_path)) == 1
    assert host_notices([service_of(vip, Mode.FULLNAT)], ["eth0.100"], {vip}, conf=tmp_path)
    for other in (service_of(vip, Mode.DSR), service_of(SIX, Mode.NAT)):
        assert host_notices([other], ["eth0.100"], {vip, SIX}, conf=tmp_path) == ()
