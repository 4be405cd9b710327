"""Addresses and prefixes of a configuration: how they are written.

Both families have the same rules. Which addresses can be what they are given for, such as no
multicast one for a VIP, is ``core.hosts``'s. A rule refuses to compare addresses with each other:
``check`` and ``modes`` do that.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from ipaddress import IPv6Address, IPv6Network, ip_address, ip_network
from typing import TypeVar, cast

from lb_xdp.config.values import RefusedError, Rule
from lb_xdp.config.wording import show
from lb_xdp.core.hosts import NO_HOST, Network, Unfit, why_unfit
from lb_xdp.core.model import ANY_PORT, IPV6, Address, BackendKey

_REMEMBERED = 32_768
Result = TypeVar("Result")

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


def address(allowed: str, unfit: Unfit) -> Rule:
    """Return the rule for an IPv4 or IPv6 address that lies in none of the ``unfit`` networks."""

    def convert(value: str) -> Address:
        found = _read_address(value, allowed)
        reason = why_unfit(found, unfit)
        if reason:
            raise RefusedError(f"{found} {reason}; {allowed}")
        return found

    formats = [{"type": "string", "format": name} for name in ("ipv4", "ipv6")]
    return Rule("address", allowed, {"anyOf": formats}, _remembering(convert))


def address_or_name(allowed: str, unfit: Unfit) -> Rule:
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
        for unfit, reason in NO_HOST:
            if unfit.version == version and network.overlaps(unfit):
                raise RefusedError(f"{network} overlaps {unfit}, which {reason}; {allowed}")
        return network

    return Rule("prefix", allowed, {"type": "string", "pattern": pattern.pattern}, convert)
