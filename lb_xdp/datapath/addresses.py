"""IP addresses between Python and the maps: four words in network order, IPv4 in the first.

The family is not in the words: it stands in a flag or a field beside them.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lb_xdp.core.model import Address

IPV4, IPV6 = 4, 6
_NO_WORDS = bytes(12)


def to_words(address: Address) -> list[int]:
    """Return an address as four 32-bit words in host order, for big-endian fields."""
    number = int(address)
    if address.version == IPV4:
        return [number, 0, 0, 0]
    return [number >> shift & 0xFFFF_FFFF for shift in (96, 64, 32, 0)]


def from_words(words: Any, family: int) -> Address:
    """Return the address that four big-endian words hold."""
    if family == IPV4:
        return IPv4Address(int(words[0]))
    return IPv6Address(words.tobytes())


def packed(places: Iterable[tuple[int, int]]) -> NDArray[np.uint32]:
    """Return the words of many addresses, a row each, given as family and number."""
    octets = b"".join(
        number.to_bytes(4) + _NO_WORDS if family == IPV4 else number.to_bytes(16)
        for family, number in places
    )
    return np.frombuffer(octets, ">u4").reshape(-1, 4)


def integers(words: NDArray[np.uint32]) -> list[int]:
    """Return the numbers of many IPv6 addresses."""
    octets = words.tobytes()
    return [int.from_bytes(octets[at : at + 16]) for at in range(0, len(octets), 16)]
