"""Which exchange a check of each kind takes. The one place that knows all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from lb_xdp.core.health import Target
from lb_xdp.core.model import CheckKind
from lb_xdp.probes.agent import AgentExchange
from lb_xdp.probes.attempt import Exchange
from lb_xdp.probes.dns import DnsExchange
from lb_xdp.probes.exec import ExecExchange
from lb_xdp.probes.http import HttpExchange
from lb_xdp.probes.icmp import IcmpExchange
from lb_xdp.probes.tcp import TcpConversation, TcpHandshake
from lb_xdp.probes.tls import Contexts
from lb_xdp.probes.udp import UdpExchange


def open_exchange(target: Target, contexts: Contexts) -> Exchange:
    """Return what asks ``target`` as its check says. Raises KeyError for a check of none."""
    return _EXCHANGES[target.check.kind](target, contexts)


def _tcp(target: Target, _contexts: Contexts) -> Exchange:
    talks = target.check.payload.expect is not None
    return TcpConversation(target) if talks else TcpHandshake(target)


def _grpc(target: Target, contexts: Contexts) -> Exchange:
    # Its library is an extra of the package: without it everything else still works.
    from lb_xdp.probes.grpc import GrpcExchange  # noqa: PLC0415 - see above

    return GrpcExchange(target, contexts)


_EXCHANGES: Final[Mapping[CheckKind, Callable[[Target, Contexts], Exchange]]] = {
    CheckKind.TCP: _tcp,
    CheckKind.HTTP: HttpExchange,
    CheckKind.HTTPS: HttpExchange,
    CheckKind.GRPC: _grpc,
    CheckKind.UDP: lambda target, _: UdpExchange(target),
    CheckKind.DNS: lambda target, _: DnsExchange(target),
    CheckKind.ICMP: lambda target, _: IcmpExchange(target),
    CheckKind.EXEC: lambda target, _: ExecExchange(target),
    CheckKind.AGENT: lambda target, _: AgentExchange(target),
}
