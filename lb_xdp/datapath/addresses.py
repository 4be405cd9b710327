"""IP addresses between Python and the maps: four words in network order, IPv4 in the first.

The family is not in the words: it stands in a flag or a field beside them.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from typing import Any

from lb_xdp.core.model import Address

IPV4, IPV6 = 4, 6


def words_of(family: int, address: int) -> list[int]:
    """Return an address as four 32-bit words in host order, for big-endian fields."""
    if family == IPV4:
        return [address, 0, 0, 0]
    return [address >> shift & 0xFFFF_FFFF for shift in (96, 64, 32, 0)]


def to_words(address: Address) -> list[int]:
    """Return an address as four 32-bit words."""
    return words_of(address.version, int(address))


def from_words(words: Any, family: int) -> Address:
    """Return the address that four big-endian words hold."""
    if family == IPV4:
        return IPv4Address(int(words[0]))
    return IPv6Address(words.tobytes())
