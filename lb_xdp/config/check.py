"""Checks that compare values: twice the same, unknown pools, addresses with two purposes.

It works on a draft, so it finds its mistakes beside those of single values. It refuses to judge a
single value (``rules`` and ``shape`` do that), or what a mode can carry (``modes`` does).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from ipaddress import ip_address
from itertools import chain

from lb_xdp.config.addresses import default_name
from lb_xdp.config.draft import Draft, DraftBackend, DraftPool
from lb_xdp.config.health import find_unhealthy
from lb_xdp.config.modes import find_misfits
from lb_xdp.config.tree import Finding, Loc, Places
from lb_xdp.config.wording import did_you_mean, quote
from lb_xdp.core.model import Address, BackendKey, Mode, Panic, ServiceKey

MAX_SERVICES = 1024
MAX_SNAT_ADDRESSES = 256
MAX_SERVICE_BACKENDS = 16_000  # a backend counts once for each service that it answers for

_OWN_SOURCE = "give an address of this gateway's that has no other use: replies are known by it"


def find_problems(draft: Draft, places: Places) -> Iterator[Finding]:
    """Yield what is wrong between values that are right by themselves."""
    # Far too large a file is refused before the checks whose cost grows with its square.
    yield from list(_sizes(draft)) or chain(
        _interfaces(draft, places),
        _api(draft),
        _names(draft, places),
        _service_keys(draft, places),
        _pool_references(draft),
        _backends(draft, places),
        _vips_as_backends(draft, places),
        _sources(draft, places),
        _panic(draft),
        find_misfits(draft, places),
        find_unhealthy(draft),
    )


def find_warnings(draft: Draft) -> Iterator[Finding]:
    """Yield what is accepted in a draft without problems, but is probably not what was meant."""
    return chain(
        _unused_pools(draft),
        _unused_sources(draft),
        _weightless(draft),
        _within_tunnel_sources(draft),
    )


def _sizes(draft: Draft) -> Iterator[Finding]:
    services = len(draft.services)
    if services > MAX_SERVICES:
        yield Finding(("services",), f"{services:,} services; at most {MAX_SERVICES:,} are allowed")
    sources = len(draft.sources)
    if sources > MAX_SNAT_ADDRESSES:
        message = f"{sources:,} addresses; at most {MAX_SNAT_ADDRESSES:,} are allowed"
        yield Finding(("gateway", "snat_addresses"), message)
    backends = sum(len(service.pool.backends) for service in draft.services if service.pool)
    if backends > MAX_SERVICE_BACKENDS:
        message = (
            f"{backends:,} backends, counted once for each service that they answer for; "
            f"at most {MAX_SERVICE_BACKENDS:,} are allowed"
        )
        yield Finding(("services",), message)


def _interfaces(draft: Draft, places: Places) -> Iterator[Finding]:
    def message(name: object, line: int) -> str:
        return f"interface {quote(str(name))} stands on line {line} already; once is enough"

    yield from _twice(((loc, name) for loc, name in draft.interfaces), places, message)


def _api(draft: Draft) -> Iterator[Finding]:
    """Find an API over TCP that strangers could use or listen to, and keys without effect."""
    given, at = draft.api.given, ("gateway", "api")
    for key, other in (("certificate", "key"), ("key", "certificate")):
        if key in given and other not in given:
            yield Finding((*at, key), f"`{other}` is missing: TLS needs both", on_key=True)
    if draft.api.listen is None:
        if "listen" not in given:
            for key in ("certificate", "key", "tokens"):
                if key in given:
                    message = "has no effect without `listen`; give that, or leave this out"
                    yield Finding((*at, key), message, on_key=True)
        return
    if "tokens" not in given:
        message = "`tokens` is missing: over TCP only tokens say who may do what"
        yield Finding((*at, "listen"), message)
    if "certificate" not in given and not ip_address(draft.api.listen.host).is_loopback:
        message = (
            f"`certificate` and `key` are missing: without TLS only a loopback address is "
            f"allowed, not {draft.api.listen.host}"
        )
        yield Finding((*at, "listen"), message)


def _names(draft: Draft, places: Places) -> Iterator[Finding]:
    for what, items in (("service", draft.services), ("pool", draft.pools)):

        def message(name: object, line: int, what: str = what) -> str:
            return f"the name {quote(str(name))} is taken by the {what} on line {line}"

        yield from _twice((((*item.at, "name"), item.name) for item in items), places, message)


def _service_keys(draft: Draft, places: Places) -> Iterator[Finding]:
    def keys() -> Iterator[tuple[Loc, ServiceKey]]:
        for service in draft.services:
            if service.vip and service.port is not None and service.protocol:
                key = ServiceKey(service.vip, service.port, service.protocol)
                yield (*service.at, "vip"), key

    def message(key: object, line: int) -> str:
        return f"{key} is taken by the service on line {line}; one service for each"

    yield from _twice(keys(), places, message)


def _twice(
    items: Iterator[tuple[Loc, object]], places: Places, message: Callable[[object, int], str]
) -> Iterator[Finding]:
    """Yield a finding at every value that stood before; None stands for an unreadable one."""
    first: dict[object, Loc] = {}
    for loc, value in items:
        if value is not None and first.setdefault(value, loc) != loc:
            yield Finding(loc, message(value, places.line(first[value])))


def _pool_references(draft: Draft) -> Iterator[Finding]:
    names = [pool.name for pool in draft.pools if pool.name]
    known = set(names)
    for service in draft.services:
        if "pool" not in service.given:
            if "backends" not in service.given:
                yield Finding(service.at, "no backends: give `pool: NAME`, or `backends:` inline")
            continue
        if "backends" in service.given:
            message = "both `pool` and `backends` are given; leave one of them out"
            yield Finding((*service.at, "backends"), message, on_key=True)
        for key, what in (("health", "the health check"), ("detect", "`detect`")):
            if key in service.given:
                message = f"{what} belongs to the pool where `pool` names one; move it there"
                yield Finding((*service.at, key), message, on_key=True)
        if service.pool_name and draft.pools_readable and service.pool_name not in known:
            hint = did_you_mean(service.pool_name, names) or f" pools: {', '.join(names) or 'none'}"
            message = f"there is no pool {quote(service.pool_name)};{hint}"
            yield Finding((*service.at, "pool"), message)


def _backends(draft: Draft, places: Places) -> Iterator[Finding]:
    for pool in draft.all_pools:
        yield from _same_key(pool, places)
        yield from _same_name(pool, places)


def _same_key(pool: DraftPool, places: Places) -> Iterator[Finding]:
    def keys() -> Iterator[tuple[Loc, object]]:
        for backend in pool.backends:
            if backend.address and backend.port is not None:
                yield pool.at_backend(backend, "host"), BackendKey(backend.address, backend.port)
            elif backend.host and backend.port is not None:
                yield pool.at_backend(backend, "host"), default_name(backend.host, backend.port)

    def message(key: object, line: int) -> str:
        return f"{key} is in this pool on line {line} already; raise its weight instead"

    yield from _twice(keys(), places, message)


def _same_name(pool: DraftPool, places: Places) -> Iterator[Finding]:
    """Compare names; two default ones are equal only where the addresses are, told already."""
    first: dict[str, DraftBackend] = {}
    for backend in pool.backends:
        if backend.name is None:
            continue
        other = first.setdefault(backend.name, backend)
        if other is not backend and (backend.named or other.named):
            line = places.line(pool.at_backend(other, "name"))
            message = f"the name {quote(backend.name)} is taken by the backend on line {line}"
            yield Finding(pool.at_backend(backend, "name"), message)


def _vips_as_backends(draft: Draft, places: Places) -> Iterator[Finding]:
    vips = _vips(draft)
    for pool in draft.all_pools:
        for backend in pool.backends:
            if backend.address in vips:
                message = (
                    f"{backend.address} is the VIP of line {places.line(vips[backend.address])}: "
                    "traffic would come back to this gateway; give the server's own address"
                )
                yield Finding(pool.at_backend(backend, "host"), message)


def _vips(draft: Draft) -> dict[Address | None, Loc]:
    """Return each VIP with where it stands first."""
    return {s.vip: (*s.at, "vip") for s in reversed(draft.services) if s.vip}


def _panic(draft: Draft) -> Iterator[Finding]:
    """Find a fallback without a panic that uses it, and the other way round."""
    for pool in draft.pools:
        if pool.panic is Panic.FALLBACK and "fallback" not in pool.given:
            message = "needs `fallback:` with the server's address; give it, or choose none or all"
            yield Finding((*pool.at, "panic"), message)
        elif pool.panic not in {Panic.FALLBACK, None} and "fallback" in pool.given:
            message = (
                f"has no effect with `panic: {pool.panic}`; leave it out, or use `panic: fallback`"
            )
            yield Finding((*pool.at, "fallback"), message, on_key=True)


def _sources(draft: Draft, places: Places) -> Iterator[Finding]:
    """Find source addresses of fullnat that packets of another meaning could be sent to."""

    def message(source: object, line: int) -> str:
        return f"{source} stands on line {line} already; once is enough"

    if not draft.sources:
        return  # as with most files: the places of 10,000 backends are nobody's business then
    yield from _twice(iter(draft.sources), places, message)
    vips = _vips(draft)
    backends = {
        backend.address: pool.at_backend(backend, "host")
        for pool in draft.all_pools
        for backend in pool.backends
    }
    for loc, source in draft.sources:
        if source in vips:
            line = places.line(vips[source])
            yield Finding(loc, f"{source} is the VIP of line {line}; {_OWN_SOURCE}")
        elif source in backends:
            line = places.line(backends[source])
            yield Finding(loc, f"{source} is the backend of line {line}; {_OWN_SOURCE}")


def _unused_pools(draft: Draft) -> Iterator[Finding]:
    used = {service.pool_name for service in draft.services}
    for pool in draft.pools:
        if pool.name not in used:
            yield Finding((*pool.at, "name"), "no service uses this pool; it is not probed")


def _weightless(draft: Draft) -> Iterator[Finding]:
    for service in draft.services:
        backends = service.pool.backends if service.pool else ()
        if backends and not any(backend.weight for backend in backends):
            yield Finding(service.at, "every backend has weight 0: the service gets no traffic")


def _unused_sources(draft: Draft) -> Iterator[Finding]:
    families = {s.vip.version for s in draft.services if s.vip and s.mode is Mode.FULLNAT}
    for loc, source in draft.sources:
        if source.version not in families:
            yield Finding(
                loc, f"no service with `mode: fullnat` uses an IPv{source.version} source"
            )


def _within_tunnel_sources(draft: Draft) -> Iterator[Finding]:
    """Find tunnel backends that could be sent packets from their own address or network."""
    tunnels = (s for s in draft.services if s.mode is not None and s.mode.tunnel and s.pool)
    pools = {s.pool.at: s.pool for s in tunnels if s.pool}
    for pool, backend in ((p, b) for p in pools.values() for b in p.backends):
        address = backend.address  # None where it is a name
        network = next((n for n in draft.tunnels if address and address in n), None)
        if network is not None:
            message = (
                f"{backend.address} lies in {network}, which outer source addresses are taken "
                "from: the server may drop them; give a prefix that has no use in gateway."
                "tunnel_sources"
            )
            yield Finding(pool.at_backend(backend, "host"), message)
