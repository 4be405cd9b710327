"""A ``Config`` as the YAML that says all of it, every default written out.

``parse_config`` turns the text back into an equal configuration (but for source and warnings).
"""

from __future__ import annotations

from io import StringIO
from typing import Any

from ruamel.yaml import YAML

from lb_xdp.config.convert import INLINE_POOL
from lb_xdp.core.check import StatusRange, Tls
from lb_xdp.core.durations import format_duration
from lb_xdp.core.model import (
    ANY_PORT,
    Backend,
    CheckKind,
    Config,
    Damping,
    Detect,
    FlowTable,
    Gateway,
    HealthCheck,
    Listen,
    Pool,
    Resolving,
    Service,
)


def effective(config: Config) -> str:
    """Return the YAML text of ``config``. Pools that no service uses are left out."""
    shared = {
        service.pool.name: _pool(service.pool) | _changes(service.pool)
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
        "dns": _dns(gateway.dns),
    }


def _dns(how: Resolving) -> dict[str, Any]:
    return {
        **({} if how.server is None else {"resolver": str(how.server)}),
        "interval": format_duration(how.interval_s),
        "max_change": how.max_change,
        "confirm": how.confirm,
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
    return "none" if listen is None else str(listen)


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
        "on_backend_down": str(service.on_backend_down),
        **(_pool(service.pool) if _inline(service) else {"pool": service.pool.name}),
    }


def service_document(service: Service) -> dict[str, Any]:
    """Return a service of the file with all that its pool says, wherever that stands."""
    return {**_service(service), **_pool(service.pool), **_changes(service.pool)}


def _pool(pool: Pool) -> dict[str, Any]:
    return {
        "backends": _backends(pool),
        "health": _health(pool.health),
        "detect": _detect(pool.detect),
    }


def _detect(detect: Detect | None) -> dict[str, Any] | str:
    if detect is None:
        return "none"
    return {
        "interval": format_duration(detect.interval_s),
        "min_flows": detect.min_flows,
        "failure_share": detect.failure_share,
        "eject": detect.eject,
        "max_ejected": detect.max_ejected,
        "base_time": format_duration(detect.base_time_s),
        "max_time": format_duration(detect.max_time_s),
    }


def _changes(pool: Pool) -> dict[str, Any]:
    """Return how the backends of a pool come and go: what an inline one has no keys for."""
    fallback = pool.fallback
    return {
        "slow_start": format_duration(pool.slow_start_s),
        "drain_timeout": format_duration(pool.drain_timeout_s),
        "min_active": pool.min_active,
        "failback_delay": format_duration(pool.failback_delay_s),
        "panic": str(pool.panic),
        **({} if fallback is None else {"fallback": _place(fallback, str(fallback.address))}),
        **({} if pool.damping is None else {"damping": _damping(pool.damping)}),
    }


def _damping(damping: Damping) -> dict[str, Any]:
    return {
        "changes": damping.changes,
        "within": format_duration(damping.within_s),
        "hold": format_duration(damping.hold_s),
        "max_hold": format_duration(damping.max_hold_s),
    }


def _backends(pool: Pool) -> list[dict[str, Any]]:
    """Return the backends in the file's order. Those of a name are one: it stands for them."""
    written = [_backend(backend, str(backend.address)) for backend in pool.backends]
    for number, named in enumerate(pool.named):
        written.insert(named.position + number, _backend(named.template, named.host))
    return written


def _place(backend: Backend, host: str) -> dict[str, Any]:
    return {
        "name": str(backend.name),
        "host": host,
        **({} if backend.port == ANY_PORT else {"port": backend.port}),
    }


def _backend(backend: Backend, host: str) -> dict[str, Any]:
    limit = backend.max_connections
    return {
        **_place(backend, host),
        "weight": backend.weight,
        **({} if limit is None else {"max_connections": limit}),
        "priority": backend.priority,
    }


def _health(health: HealthCheck) -> dict[str, Any] | str:
    if health.kind is CheckKind.NONE:
        return "none"
    fast_s, down_s = health.fast_interval_s, health.down_interval_s
    optional = {
        "fast_interval": None if fast_s is None else format_duration(fast_s),
        "down_interval": None if down_s is None else format_duration(down_s),
        "host": None if health.host is None else str(health.host),
        "port": health.port,
        "via": str(health.via) if health.kind.needs_port else None,
        **_question(health),
    }
    return {
        "type": str(health.kind),
        "interval": format_duration(health.interval_s),
        "timeout": format_duration(health.timeout_s),
        "threshold": {"rise": health.rise, "fall": health.fall},
        "jitter": health.jitter,
        "initial": str(health.initial),
        **{key: value for key, value in optional.items() if value is not None},
    }


def _question(health: HealthCheck) -> dict[str, Any]:
    """Return the keys of the check's own kind; None stands for one that is not given."""
    payload, http, tls = health.payload, _http(health), _tls(health.tls)
    send, expect = _payload(payload.send), _payload(payload.expect)
    name, encrypted = health.grpc_service or None, health.tls is not None
    questions: dict[CheckKind, dict[str, Any]] = {
        CheckKind.TCP: {"send": send, "expect": expect},
        CheckKind.UDP: {"send": send, "expect": expect},
        CheckKind.AGENT: {"send": send},
        CheckKind.HTTP: http,
        CheckKind.HTTPS: {**http, **tls},
        CheckKind.GRPC: {"grpc_service": name, "tls": encrypted, **tls},
        CheckKind.DNS: _query(health),
        CheckKind.EXEC: {"command": list(health.command)},
    }
    return questions.get(health.kind, {})


def _query(health: HealthCheck) -> dict[str, Any]:
    return {
        "query_name": health.dns.query_name,
        "query_type": health.dns.query_type,
        "expected_answer": health.dns.expected_answer,
    }


def _http(health: HealthCheck) -> dict[str, Any]:
    how = health.http
    return {
        "method": how.method,
        "path": how.path,
        "host_header": how.host_header,
        "headers": dict(how.headers) or None,
        "expected_status": [_status(status) for status in how.expected_status],
        "expected_body": how.expected_body,
        "reuse": how.reuse,
    }


def _tls(tls: Tls | None) -> dict[str, Any]:
    if tls is None:
        return {}
    return {
        "server_name": tls.server_name,
        "ca_file": tls.ca_file,
        "insecure": tls.insecure,
        "certificate": tls.certificate,
        "private_key": tls.private_key,
    }


def _payload(octets: bytes | None) -> str | None:
    """Return text where these octets are plain text, else ``hex:...``."""
    if octets is None:
        return None
    try:
        text = octets.decode("utf-8")
    except UnicodeDecodeError:
        return f"hex:{octets.hex()}"
    plain = all(c.isprintable() or c in "\r\n\t" for c in text)
    return text if plain and not text.startswith("hex:") else f"hex:{octets.hex()}"


def _status(status: StatusRange) -> int | str:
    return status.first if status.first == status.last else f"{status.first}-{status.last}"
