"""The models of the file as the dataclasses of ``lb_xdp.core.model``.

It fills in the defaults that depend on other values. It refuses nothing: whatever arrives here has
passed every check.
"""

from __future__ import annotations

from collections.abc import Mapping

from lb_xdp.config import schema
from lb_xdp.core.model import (
    ANY_PORT,
    ApiListener,
    Backend,
    BackendKey,
    BackendName,
    Config,
    FlowTable,
    Gateway,
    HealthCheck,
    Pool,
    Service,
    ServiceName,
    Session,
    TunnelSources,
)

# The name of the pool that a service holds inline starts so; no name in a file can.
INLINE_POOL = "service:"

_LONGEST_DEFAULT_TIMEOUT_S = 1.0


def to_config(root: schema.Root, source: str, warnings: tuple[str, ...]) -> Config:
    """Return the configuration that the checked ``root`` stands for."""
    pools = {pool.name: _pool(pool.name, pool.backends, pool.health) for pool in root.pools}
    services = tuple(_service(service, pools) for service in root.services)
    return Config(_gateway(root.gateway), services, source, warnings)


def default_socket(gateway_name: str) -> str:
    """Return where the daemon of ``gateway_name`` listens unless told otherwise."""
    return f"/run/lb-xdp/{gateway_name}/api.sock"


def _gateway(gateway: schema.Gateway) -> Gateway:
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


def _service(service: schema.Service, pools: Mapping[str, Pool]) -> Service:
    if service.pool is None:
        pool = _pool(f"{INLINE_POOL}{service.name}", service.backends, service.health)
    else:
        pool = pools[service.pool]
    return Service(
        name=ServiceName(service.name),
        vip=service.vip,
        port=service.port,
        protocol=service.protocol,
        mode=service.mode,
        pool=pool,
        algorithm=service.algorithm,
        session=_session(service.session),
        no_backend=service.no_backend,
    )


def _session(session: schema.Session) -> Session:
    return Session(session.affinity, session.timeout, session.flows)


def _pool(name: str, backends: tuple[schema.Backend, ...], health: schema.Health) -> Pool:
    return Pool(name, tuple(_backend(backend) for backend in backends), _health(health))


def _backend(backend: schema.Backend) -> Backend:
    port = ANY_PORT if backend.port is None else backend.port
    return Backend(
        name=BackendName(backend.name or str(BackendKey(backend.host, port))),
        address=backend.host,
        port=port,
        weight=backend.weight,
        max_connections=backend.max_connections,
    )


def _health(health: schema.Health) -> HealthCheck:
    return HealthCheck(
        kind=health.type,
        interval_s=health.interval,
        timeout_s=health.timeout or min(_LONGEST_DEFAULT_TIMEOUT_S, health.interval),
        rise=health.threshold.rise,
        fall=health.threshold.fall,
        jitter=health.jitter,
        host=health.host,
        port=health.port,
        path=health.path,
        http_host=health.host_header,
        expected_status=health.expected_status,
    )
