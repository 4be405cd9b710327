"""How addresses with ports are written. Commands import this, so it takes nothing with it."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address


def format_endpoint(address: IPv4Address | IPv6Address, port: int | str) -> str:
    """Return ``10.0.0.11:80`` or ``[2001:db8::11]:80`` (RFC 5952, section 6)."""
    return f"[{address}]:{port}" if isinstance(address, IPv6Address) else f"{address}:{port}"


def format_service(vip: IPv4Address | IPv6Address, port: int, protocol: str) -> str:
    """Return ``203.0.113.10:80/tcp``; where the service has every port, 0, ``any`` stands there."""
    return f"{format_endpoint(vip, port or 'any')}/{protocol}"
