"""The models of the file as the dataclasses of ``lb_xdp.core.model``.

It fills in the defaults that depend on other values. It refuses nothing: whatever arrives here has
passed every check.
"""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address

from lb_xdp.config import schema
from lb_xdp.config.addresses import default_name
from lb_xdp.core.check import DnsCheck, HttpCheck, Payload, Tls
from lb_xdp.core.model import (
    ANY_PORT,
    Address,
    ApiListener,
    Backend,
    BackendName,
    CheckKind,
    Config,
    Damping,
    Detect,
    FlowTable,
    Gateway,
    HealthCheck,
    Named,
    Pool,
    Resolving,
    Service,
    ServiceName,
    Session,
    TunnelSources,
)

# The name of the pool that a service holds inline starts so; no name in a file can.
INLINE_POOL = "service:"

_NOWHERE = IPv4Address(0)
_LONGEST_DEFAULT_TIMEOUT_S = 1.0


def to_config(root: schema.Root, source: str, warnings: tuple[str, ...]) -> Config:
    """Return the configuration that the checked ``root`` stands for."""
    pools = {pool.name: to_pool(pool) for pool in root.pools}
    services = tuple(
        to_service(service, pools[service.pool] if service.pool else None)
        for service in root.services
    )
    return Config(to_gateway(root.gateway), services, source, warnings)


def default_socket(gateway_name: str) -> str:
    """Return where the daemon of ``gateway_name`` listens unless told otherwise."""
    return f"/run/lb-xdp/{gateway_name}/api.sock"


def to_gateway(gateway: schema.Gateway) -> Gateway:
    """Return the gateway."""
    return Gateway(
        name=gateway.name,
        interfaces=gateway.interfaces,
        xdp_mode=gateway.xdp_mode,
        api_socket=gateway.api.socket or default_socket(gateway.name),
        metrics_listen=gateway.metrics.listen,
        snat_addresses=gateway.snat_addresses,
        tunnel_sources=TunnelSources(gateway.tunnel_sources.ipv4, gateway.tunnel_sources.ipv6),
        gue_port=gateway.gue_port,
        flow_table=_flow_table(gateway.flow_table),
        dns=Resolving(
            gateway.dns.resolver,
            gateway.dns.interval,
            gateway.dns.max_change,
            gateway.dns.confirm,
        ),
        api_group=gateway.api.group,
        api_listener=_api_listener(gateway.api),
    )


def _api_listener(api: schema.Api) -> ApiListener | None:
    if api.listen is None or api.tokens is None:  # the checks refuse the one without the other
        return None
    return ApiListener(api.listen, api.tokens, api.certificate, api.key)


def _flow_table(table: schema.FlowTable) -> FlowTable:
    return FlowTable(
        entries=table.entries,
        settle_s=table.settle,
        tcp_idle_s=table.tcp_idle,
        tcp_opening_s=table.tcp_opening,
        tcp_closing_s=table.tcp_closing,
        udp_idle_s=table.udp_idle,
    )


def to_service(service: schema.Service, named: Pool | None) -> Service:
    """Return a service; ``named`` is the pool that it names, None where it has backends itself."""
    return Service(
        name=ServiceName(service.name),
        vip=service.vip,
        port=service.port,
        protocol=service.protocol,
        mode=service.mode,
        pool=named or _pool(f"{INLINE_POOL}{service.name}", service),
        algorithm=service.algorithm,
        session=_session(service.session),
        no_backend=service.no_backend,
        on_backend_down=service.on_backend_down,
    )


def _session(session: schema.Session) -> Session:
    return Session(session.affinity, session.timeout, session.flows)


def to_pool(pool: schema.Pool) -> Pool:
    """Return a pool of the file."""
    return replace(
        _pool(pool.name, pool),
        slow_start_s=pool.slow_start,
        drain_timeout_s=pool.drain_timeout,
        min_active=pool.min_active,
        failback_delay_s=pool.failback_delay,
        panic=pool.panic,
        fallback=_fallback(pool.fallback) if pool.fallback else None,
        damping=_damping(pool.damping) if pool.damping else None,
    )


def _damping(damping: schema.Damping) -> Damping:
    hold_s = min(damping.hold, damping.max_hold)
    return Damping(damping.changes, damping.within, hold_s, damping.max_hold)


def _fallback(fallback: schema.Fallback) -> Backend:
    port = ANY_PORT if fallback.port is None else fallback.port
    name = BackendName(fallback.name or default_name(fallback.host, port))
    return Backend(name, fallback.host, port, weight=0, fallback=True)


def _pool(name: str, pool: schema.Pool | schema.Service) -> Pool:
    known, named = list[Backend](), list[Named]()
    for backend in pool.backends:
        if isinstance(backend.host, str):
            template = _backend(backend, _NOWHERE)
            named.append(Named(backend.host, template, len(known)))
        else:
            known.append(_backend(backend, backend.host))
    detect = _detect(pool.detect)
    return Pool(name, tuple(known), _health(pool.health), named=tuple(named), detect=detect)


def _detect(detect: schema.Detect | None) -> Detect | None:
    if detect is None:
        return None
    return Detect(
        interval_s=detect.interval,
        min_flows=detect.min_flows,
        failure_share=detect.failure_share,
        eject=detect.eject,
        max_ejected=detect.max_ejected,
        base_time_s=detect.base_time,
        max_time_s=detect.max_time,
    )


def _backend(backend: schema.Backend, address: Address) -> Backend:
    port = ANY_PORT if backend.port is None else backend.port
    return Backend(
        name=BackendName(backend.name or default_name(backend.host, port)),
        address=address,
        port=port,
        weight=backend.weight,
        max_connections=backend.max_connections,
        priority=backend.priority,
    )


def _health(health: schema.Health) -> HealthCheck:
    tls = health.type is CheckKind.HTTPS or (health.type is CheckKind.GRPC and health.tls)
    return HealthCheck(
        kind=health.type,
        interval_s=health.interval,
        timeout_s=health.timeout or min(_LONGEST_DEFAULT_TIMEOUT_S, health.interval),
        rise=health.threshold.rise,
        fall=health.threshold.fall,
        jitter=health.jitter,
        host=health.host,
        port=health.port,
        fast_interval_s=health.fast_interval,
        down_interval_s=health.down_interval,
        initial=health.initial,
        payload=Payload(health.send, health.expect),
        http=_http(health),
        tls=_tls(health) if tls else None,
        grpc_service=health.grpc_service,
        dns=_dns(health),
        command=health.command,
        via=health.via,
    )


def _http(health: schema.Health) -> HttpCheck:
    return HttpCheck(
        method=health.method,
        path=health.path,
        host_header=health.host_header,
        headers=health.headers,
        expected_status=health.expected_status,
        expected_body=health.expected_body,
        reuse=health.reuse,
    )


def _tls(health: schema.Health) -> Tls:
    return Tls(
        server_name=health.server_name,
        ca_file=health.ca_file,
        insecure=health.insecure,
        certificate=health.certificate,
        private_key=health.private_key,
    )


def _dns(health: schema.Health) -> DnsCheck:
    if health.query_name is None:
        return DnsCheck()
    return DnsCheck(health.query_name, health.query_type, health.expected_answer)
