"""What can be read of a configuration that may still have mistakes.

All errors are reported at once, so the checks that compare values must run although others are
wrong. A draft holds each value that is right by itself, and None where it is not (``shape`` says
so). It reports nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from lb_xdp.config import asking, rules
from lb_xdp.config.addresses import default_name
from lb_xdp.config.tree import Loc
from lb_xdp.config.values import LISTEN, RefusedError, Rule
from lb_xdp.core.hosts import Network
from lb_xdp.core.model import (
    ANY_PORT,
    Address,
    Affinity,
    Algorithm,
    CheckKind,
    Listen,
    Mode,
    OnBackendDown,
    Panic,
    Protocol,
    TunnelSources,
    Via,
)


@dataclass(frozen=True, slots=True)
class DraftBackend:
    """A backend; ``name`` is the default one, ``port`` ``ANY_PORT`` where the file gives none.

    ``host`` is a host name; where it is an address, that is in ``address``. ``below`` is where it
    stands in its pool, wherever that stands.
    """

    below: Loc
    named: bool
    name: str | None
    host: str | None
    address: Address | None
    port: int | None
    weight: int | None
    limited: bool


@dataclass(frozen=True, slots=True)
class DraftHealth:
    """A health check as far as it can be read; ``given`` are the keys that stand in the file.

    ``question`` holds what single kinds have, of those given: None where a value is wrong.
    """

    at: Loc
    given: tuple[str, ...]
    kind: CheckKind | None
    interval_s: float | None
    fast_interval_s: float | None
    timeout_s: float | None
    via: Via | None
    question: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class DraftPool:
    """A pool of the file, or the inline backends of a service.

    ``backends`` has the fallback as well, with weight 0: it is a place for packets like the others.
    """

    at: Loc
    given: tuple[str, ...]
    name: str | None
    backends: tuple[DraftBackend, ...]
    panic: Panic | None
    health_given: bool
    health: DraftHealth | None

    def at_backend(self, backend: DraftBackend, *key: str) -> Loc:
        """Return where a backend of this pool stands, or a key of it."""
        return (*self.at, *backend.below, *key)


@dataclass(frozen=True, slots=True)
class DraftService:
    """A service. ``pool`` is the one that it names or holds, None where there is none."""

    at: Loc
    given: tuple[str, ...]
    name: str | None
    vip: Address | None
    port: int | None
    protocol: Protocol | None
    mode: Mode | None
    algorithm: Algorithm | None
    affinity: Affinity | None
    flows: bool | None
    on_backend_down: OnBackendDown | None
    pool_name: str | None
    pool: DraftPool | None


@dataclass(frozen=True, slots=True)
class DraftApi:
    """The keys of ``gateway.api`` that stand in the file, and where it listens over TCP."""

    given: tuple[str, ...]
    listen: Listen | None


@dataclass(frozen=True, slots=True)
class Draft:
    """The whole file.

    ``pools_readable``: every pool's name is known, so no other one exists.
    ``sources_readable``: so is every source address of fullnat. ``tunnels`` are the networks that
    the outer source addresses of tunnels come from.
    """

    interfaces: tuple[tuple[Loc, str], ...]
    sources: tuple[tuple[Loc, Address], ...]
    sources_readable: bool
    tunnels: tuple[Network, ...]
    api: DraftApi
    pools: tuple[DraftPool, ...]
    services: tuple[DraftService, ...]
    pools_readable: bool

    @property
    def all_pools(self) -> Iterator[DraftPool]:
        """Yield every pool once, inline ones included."""
        yield from self.pools
        yield from (s.pool for s in self.services if s.pool and s.pool.at == s.at)


def moved(pool: DraftPool, at: Loc) -> DraftPool:
    """Return the same pool at another place."""
    health = pool.health and replace(pool.health, at=(*at, "health"))
    return replace(pool, at=at, health=health)


def draft_of(data: object) -> Draft:
    """Return what can be read of the ``data`` of a whole file."""
    root = data if isinstance(data, dict) else {}
    interfaces = _gateway_list(root, "interfaces", rules.INTERFACE)
    sources = _gateway_list(root, "snat_addresses", rules.SNAT_ADDRESS)
    pools = tuple(draft_of_pool(at, item) for at, item in _mappings(root, (), "pools"))
    by_name = {pool.name: pool for pool in reversed(pools) if pool.name}
    services = tuple(
        draft_of_service(at, item, by_name) for at, item in _mappings(root, (), "services")
    )
    listed_pools = root.get("pools", [])
    readable = isinstance(listed_pools, list) and len(pools) == len(listed_pools)
    return Draft(
        interfaces=tuple((at, name) for at, name in interfaces if name is not None),
        sources=tuple((at, source) for at, source in sources if source is not None),
        sources_readable=all(source is not None for _, source in sources),
        tunnels=_tunnels(root),
        api=_api(root),
        pools=pools,
        services=services,
        pools_readable=readable and all(pool.name for pool in pools),
    )


def _gateway_list(root: Mapping[str, object], key: str, rule: Rule) -> list[tuple[Loc, Any]]:
    """Return the values of a list of the gateway's; what cannot be read at all is one None."""
    gateway = root.get("gateway", {})
    listed = gateway.get(key, []) if isinstance(gateway, dict) else None
    if not isinstance(listed, list):
        return [(("gateway", key), None)]
    items = [{key: item} for item in listed]
    return [(("gateway", key, i), _value(item, key, rule)) for i, item in enumerate(items)]


def _tunnels(root: Mapping[str, object]) -> tuple[Network, ...]:
    gateway = root.get("gateway", {})
    told = gateway.get("tunnel_sources", {}) if isinstance(gateway, dict) else None
    item, default = told if isinstance(told, dict) else {}, TunnelSources()
    found = (
        _value(item, "ipv4", rules.TUNNEL_IPV4, default.ipv4),
        _value(item, "ipv6", rules.TUNNEL_IPV6, default.ipv6),
    )
    return tuple(network for network in found if network is not None)


def _api(root: Mapping[str, object]) -> DraftApi:
    gateway = root.get("gateway", {})
    told = gateway.get("api", {}) if isinstance(gateway, dict) else {}
    item = told if isinstance(told, dict) else {}
    return DraftApi(tuple(item), _value(item, "listen", LISTEN))


def _mappings(
    parent: Mapping[str, object], at: Loc, key: str
) -> Iterator[tuple[Loc, dict[str, object]]]:
    listed = parent.get(key)
    for index, item in enumerate(listed if isinstance(listed, list) else []):
        if isinstance(item, dict):
            yield (*at, key, index), item


def _value(item: Mapping[str, object], key: str, rule: Rule, default: Any = None) -> Any:
    """Return the value of ``key``; the default where it is absent, None where it is wrong."""
    if key not in item:
        return default
    try:
        return rule.read(item[key])
    except RefusedError:
        return None


def draft_of_service(
    at: Loc, item: Mapping[str, object], by_name: Mapping[str, DraftPool]
) -> DraftService:
    """Return what can be read of a service, and of the pool that it names or holds."""
    session = item.get("session", {})
    told = session if isinstance(session, dict) else {"affinity": None, "flows": None}
    pool_name = _value(item, "pool", rules.NAME)
    inline = "backends" in item and "pool" not in item
    return DraftService(
        at=at,
        given=tuple(item),
        name=_value(item, "name", rules.NAME),
        vip=_value(item, "vip", rules.VIP),
        port=_value(item, "port", rules.SERVICE_PORT),
        protocol=_value(item, "protocol", rules.PROTOCOL, Protocol.TCP),
        mode=_value(item, "mode", rules.MODE),
        algorithm=_value(item, "algorithm", rules.ALGORITHM, Algorithm.MAGLEV),
        affinity=_value(told, "affinity", rules.AFFINITY, Affinity.NONE),
        flows=_value(told, "flows", rules.FLOWS, default=True),
        on_backend_down=_value(
            item, "on_backend_down", rules.ON_BACKEND_DOWN, OnBackendDown.REHASH
        ),
        pool_name=pool_name,
        pool=draft_of_pool(at, item) if inline else by_name.get(pool_name),
    )


def draft_of_pool(at: Loc, item: Mapping[str, object]) -> DraftPool:
    """Return what can be read of a pool, or of a service with backends of its own."""
    backends = (_backend(below, each) for below, each in _mappings(item, (), "backends"))
    return DraftPool(
        at=at,
        given=tuple(item),
        name=_value(item, "name", rules.NAME),
        backends=(*backends, *_fallback(item.get("fallback"))),
        panic=_value(item, "panic", rules.PANIC, Panic.NONE),
        health_given="health" in item,
        health=_health((*at, "health"), item.get("health")),
    )


def _fallback(item: object) -> tuple[DraftBackend, ...]:
    if not isinstance(item, dict):
        return ()
    return (_backend(("fallback",), {**item, "weight": 0}),)


def _backend(below: Loc, item: dict[str, object]) -> DraftBackend:
    host = _value(item, "host", rules.BACKEND_HOST)
    port = _value(item, "port", rules.PORT, ANY_PORT)
    default = default_name(host, port) if host and port is not None else None
    return DraftBackend(
        below=below,
        named="name" in item,
        name=_value(item, "name", rules.BACKEND_NAME, default),
        host=host if isinstance(host, str) else None,
        address=None if isinstance(host, str) else host,
        port=port,
        weight=_value(item, "weight", rules.WEIGHT, 100),
        limited="max_connections" in item,
    )


def _health(at: Loc, item: object) -> DraftHealth | None:
    if not isinstance(item, dict):
        return None
    return DraftHealth(
        at=at,
        given=tuple(item),
        kind=_value(item, "type", rules.CHECK, CheckKind.TCP),
        interval_s=_value(item, "interval", rules.INTERVAL, 2.0),
        fast_interval_s=_value(item, "fast_interval", rules.INTERVAL),
        timeout_s=_value(item, "timeout", rules.TIMEOUT),
        via=_value(item, "via", rules.VIA, Via.DIRECT),
        question={k: _value(item, k, rule) for k, rule in _QUESTION.items() if k in item},
    )


_QUESTION: Mapping[str, Rule] = {
    "send": asking.PAYLOAD,
    "expect": asking.PAYLOAD,
    "method": rules.METHOD,
    "expected_body": asking.REGEX,
    "tls": asking.SWITCH,
    "ca_file": rules.FILE,
    "insecure": asking.SWITCH,
    "certificate": rules.FILE,
    "private_key": rules.FILE,
    "query_name": rules.DNS_QUERY,
    "query_type": rules.DNS_TYPE,
    "expected_answer": rules.DNS_ANSWER,
    "command": asking.COMMAND,
}
"""What ``question`` holds: the keys whose values are compared with others, or with the host."""
