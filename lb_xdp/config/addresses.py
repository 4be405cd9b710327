"""Addresses and prefixes of a configuration: which of them can do what they are given for.

Both families have the same rules. A rule says no to an address that can never work, such as a
multicast VIP; it refuses to compare addresses with each other: ``check`` and ``modes`` do that.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TypeAlias, TypeVar, cast

from lb_xdp.config.values import RefusedError, Rule
from lb_xdp.config.wording import show
from lb_xdp.core.model import ANY_PORT, IPV6, Address, BackendKey

Network: TypeAlias = IPv4Network | IPv6Network

_NO_HOST: tuple[tuple[Network, str], ...] = (
    (IPv4Network("0.0.0.0/8"), "is no host's address (0.0.0.0/8)"),
    (IPv4Network("127.0.0.0/8"), "is a loopback address, which never leaves its host"),
    (IPv4Network("224.0.0.0/4"), "is a multicast address"),
    (IPv4Network("255.255.255.255/32"), "is the broadcast address"),
    (IPv6Network("::1/128"), "is a loopback address, which never leaves its host"),
    (IPv6Network("::/32"), "is no host's address (::/32)"),
    (IPv6Network("ff00::/8"), "is a multicast address"),
)
_LINK_LOCAL: tuple[tuple[Network, str], ...] = (
    (IPv4Network("169.254.0.0/16"), "is a link-local address, which no router forwards"),
    (IPv6Network("fe80::/10"), "is a link-local address, which no router forwards"),
)
_NEEDS_ZONE = ((IPv6Network("fe80::/10"), "is a link-local address: it could be on any interface"),)

ROUTED: Sequence[tuple[Network, str]] = (*_NO_HOST, *_LINK_LOCAL)
"""What an address that routers forward to cannot be, and why."""

HOSTS: Sequence[tuple[Network, str]] = (*_NO_HOST, *_NEEDS_ZONE)
"""What the address of another host cannot be."""

_REMEMBERED = 32_768
Result = TypeVar("Result")

ANYWHERE: Sequence[tuple[Network, str]] = _NEEDS_ZONE
"""What an address cannot be that may be one of this host, too."""

_LOOKS_LIKE_A_NAME = re.compile(r"(?=.*[A-Za-z])[A-Za-z0-9]([A-Za-z0-9.-]{0,252})", re.ASCII)
LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
"""One part of a name: RFC 1123, 2.1, and underscores, which names in DNS may have."""

# The last label starts with a letter, so that a mistyped address is never taken for a name.
_HOST_NAME = re.compile(
    rf"(?=.{{1,253}}$)(?:{LABEL}\.)*[A-Za-z](?:[A-Za-z0-9_-]{{0,61}}[A-Za-z0-9_])?\.?", re.ASCII
)


def _read_address(value: str, allowed: str) -> Address:
    """Read an address of either family; RFC 4007 zones and RFC 4291 mapped ones get their words."""
    if _LOOKS_LIKE_A_NAME.fullmatch(value):
        raise RefusedError(f"{show(value)}: a host name is not allowed here; {allowed}")
    try:
        found = ip_address(value)
    except ValueError:
        raise RefusedError from None
    if isinstance(found, IPv6Address) and found.scope_id is not None:
        raise RefusedError(f"{show(value)}: an address with a zone is not allowed; {allowed}")
    if isinstance(found, IPv6Address) and found.ipv4_mapped is not None:
        raise RefusedError(
            f"{show(value)} is an IPv4 address in IPv6 spelling; write {found.ipv4_mapped}"
        )
    return found


def _remembering(convert: Callable[[str], Result]) -> Callable[[object], Result]:
    """Return a reader that remembers: addresses are read twice, and at each reload again.

    So they are the same objects as well, which dictionaries find sooner than equal ones.
    """
    remembered = lru_cache(_REMEMBERED)(convert)

    def read(value: object) -> Result:
        if not isinstance(value, str):
            raise RefusedError
        return remembered(value)

    return read


def address(allowed: str, unfit: Sequence[tuple[Network, str]]) -> Rule:
    """Return the rule for an IPv4 or IPv6 address that lies in none of the ``unfit`` networks."""

    def convert(value: str) -> Address:
        found = _read_address(value, allowed)
        for network, reason in unfit:
            if found in network:
                raise RefusedError(f"{found} {reason}; {allowed}")
        return found

    formats = [{"type": "string", "format": name} for name in ("ipv4", "ipv6")]
    return Rule("address", allowed, {"anyOf": formats}, _remembering(convert))


def address_or_name(allowed: str, unfit: Sequence[tuple[Network, str]]) -> Rule:
    """Return the rule for an address, or a host name (``str``, lower case, without a last dot)."""
    plain = address(allowed, unfit)

    def convert(value: str) -> Address | str:
        if _HOST_NAME.fullmatch(value):
            return value.lower().removesuffix(".")
        if _LOOKS_LIKE_A_NAME.fullmatch(value):
            raise RefusedError  # nearly a name: what is allowed says more than that it is none
        return cast("Address", plain.convert(value))

    formats = [{"type": "string", "format": name} for name in ("ipv4", "ipv6", "hostname")]
    return Rule("address or host name", allowed, {"anyOf": formats}, _remembering(convert))


def default_name(host: Address | str, port: int) -> str:
    """Return the name of a backend that has none of its own: ``host:port``."""
    if isinstance(host, str):
        return host if port == ANY_PORT else f"{host}:{port}"
    return str(BackendKey(host, port))


def prefix(version: int, shortest: int, example: str) -> Rule:
    """Return the rule for a prefix of one family, with at least ``shortest`` bits."""
    longest = IPv6Network("::/0").max_prefixlen if version == IPV6 else 32
    pattern = re.compile(r"^[0-9a-fA-F.:]+/[0-9]{1,3}$", re.ASCII)
    allowed = f"an IPv{version} prefix of {shortest} to {longest} bits such as {example}"

    def convert(value: object) -> Network:
        if not isinstance(value, str) or pattern.fullmatch(value) is None:
            raise RefusedError
        try:
            network = ip_network(value, strict=False)
        except ValueError:
            raise RefusedError from None
        if network.version != version or network.prefixlen < shortest:
            raise RefusedError
        if str(network.network_address) != str(ip_address(value.split("/")[0])):
            raise RefusedError(f"{show(value)} has bits beyond its length set; write {network}")
        for unfit, reason in _NO_HOST:
            if unfit.version == version and network.overlaps(unfit):
                raise RefusedError(f"{network} overlaps {unfit}, which {reason}; {allowed}")
        return network

    return Rule("prefix", allowed, {"type": "string", "pattern": pattern.pattern}, convert)
