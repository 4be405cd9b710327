"""A ``Config`` as the YAML that says all of it, every default written out.

``parse_config`` turns the text back into an equal configuration (but for source and warnings).
"""

from __future__ import annotations

from io import StringIO
from typing import Any

from ruamel.yaml import YAML

from lb_xdp.config.convert import INLINE_POOL
from lb_xdp.core.durations import format_duration
from lb_xdp.core.model import (
    ANY_PORT,
    Backend,
    CheckKind,
    Config,
    FlowTable,
    Gateway,
    HealthCheck,
    Listen,
    Pool,
    Service,
    StatusRange,
)


def effective(config: Config) -> str:
    """Return the YAML text of ``config``. Pools that no service uses are left out."""
    shared = {
        service.pool.name: _pool(service.pool)
        for service in config.services
        if not _inline(service)
    }
    document: dict[str, Any] = {"gateway": gateway_document(config.gateway)}
    if shared:
        document["pools"] = [{"name": name, **pool} for name, pool in shared.items()]
    document["services"] = [_service(service) for service in config.services]
    yaml = YAML()
    yaml.width = 4096  # no folding: a value stays on its line
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.representer.ignore_aliases = lambda *_data: True
    text = StringIO()
    yaml.dump(document, text)
    return text.getvalue()


def _inline(service: Service) -> bool:
    return service.pool.name.startswith(INLINE_POOL)


def gateway_document(gateway: Gateway) -> dict[str, Any]:
    """Return the mapping ``gateway`` of the file."""
    return {
        "name": gateway.name,
        "interfaces": list(gateway.interfaces),
        "xdp_mode": str(gateway.xdp_mode),
        "api": _api(gateway),
        "metrics": {"listen": _listen(gateway.metrics_listen)},
        "snat_addresses": [str(address) for address in gateway.snat_addresses],
        "tunnel_sources": {
            "ipv4": str(gateway.tunnel_sources.ipv4),
            "ipv6": str(gateway.tunnel_sources.ipv6),
        },
        "gue_port": gateway.gue_port,
        "flow_table": _flow_table(gateway.flow_table),
    }


def _api(gateway: Gateway) -> dict[str, Any]:
    remote = gateway.api_listener
    optional = {
        "group": gateway.api_group,
        "certificate": remote and remote.certificate,
        "key": remote and remote.key,
        "tokens": remote and remote.tokens,
    }
    return {
        "socket": gateway.api_socket,
        "listen": _listen(remote.listen if remote else None),
        **{key: value for key, value in optional.items() if value is not None},
    }


def _flow_table(table: FlowTable) -> dict[str, Any]:
    return {
        "entries": table.entries,
        "settle": format_duration(table.settle_s),
        "tcp_idle": format_duration(table.tcp_idle_s),
        "tcp_opening": format_duration(table.tcp_opening_s),
        "tcp_closing": format_duration(table.tcp_closing_s),
        "udp_idle": format_duration(table.udp_idle_s),
    }


def _listen(listen: Listen | None) -> str:
    if listen is None:
        return "none"
    host = f"[{listen.host}]" if ":" in listen.host else listen.host
    return f"{host}:{listen.port}"


def _service(service: Service) -> dict[str, Any]:
    return {
        "name": str(service.name),
        "vip": str(service.vip),
        "port": "any" if service.port == ANY_PORT else service.port,
        "protocol": str(service.protocol),
        "mode": str(service.mode),
        "algorithm": str(service.algorithm),
        "session": {
            "affinity": str(service.session.affinity),
            "timeout": format_duration(service.session.timeout_s),
            "flows": "auto" if service.session.flows else "none",
        },
        "no_backend": str(service.no_backend),
        **(_pool(service.pool) if _inline(service) else {"pool": service.pool.name}),
    }


def service_document(service: Service) -> dict[str, Any]:
    """Return a service of the file with all that its pool says, wherever that stands."""
    return {**_service(service), **_pool(service.pool)}


def _pool(pool: Pool) -> dict[str, Any]:
    return {
        "backends": [_backend(backend) for backend in pool.backends],
        "health": _health(pool.health),
    }


def _backend(backend: Backend) -> dict[str, Any]:
    limit = backend.max_connections
    return {
        "name": str(backend.name),
        "host": str(backend.address),
        **({} if backend.port == ANY_PORT else {"port": backend.port}),
        "weight": backend.weight,
        **({} if limit is None else {"max_connections": limit}),
        "priority": 0,
    }


def _health(health: HealthCheck) -> dict[str, Any] | str:
    if health.kind is CheckKind.NONE:
        return "none"
    optional = {
        "host": None if health.host is None else str(health.host),
        "port": health.port,
        **(_http(health) if health.kind is CheckKind.HTTP else {}),
    }
    return {
        "type": str(health.kind),
        "interval": format_duration(health.interval_s),
        "timeout": format_duration(health.timeout_s),
        "threshold": {"rise": health.rise, "fall": health.fall},
        "jitter": health.jitter,
        **{key: value for key, value in optional.items() if value is not None},
    }


def _http(health: HealthCheck) -> dict[str, Any]:
    return {
        "path": health.path,
        "host_header": health.http_host,
        "expected_status": [_status(status) for status in health.expected_status],
    }


def _status(status: StatusRange) -> int | str:
    return status.first if status.first == status.last else f"{status.first}-{status.last}"
