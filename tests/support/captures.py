"""Real traffic for the fuzzer: the captures in Debian's python3-dpkt, as they are and sent to VIPs.

DNS with ICMP errors, HTTP, and DNS that was cut off. The package is wanted for these files alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from scapy.utils import RawPcapReader

from tests.support.fuzz_frames import Target
from tests.support.wellformed import parse, repair

_FOLDER = Path("/usr/share/doc/python3-dpkt/examples/data")
_ETHERNET = 1  # LINKTYPE_ETHERNET
_DESTINATION_AT = {4: 16, 6: 24}  # octets from the IP header on


@cache
def captured() -> tuple[bytes, ...]:
    """Return the Ethernet frames of all captures, as they were on the wire.

    Raises FileNotFoundError with the remedy where the package or its documentation is missing.
    """
    frames: list[bytes] = []
    for path in sorted(_FOLDER.glob("*.pcap")):
        with RawPcapReader(str(path)) as reader:
            if reader.linktype == _ETHERNET:
                frames.extend(data for data, _ in reader)
    if not frames:
        raise FileNotFoundError(
            f"{_FOLDER}: no captures: reinstall python3-dpkt, with documentation "
            "(see path-exclude in /etc/dpkg/dpkg.cfg.d)"
        )
    return tuple(frames)


def captured_for(targets: Sequence[Target], gateway: bytes) -> Iterator[bytes]:
    """Yield the captured frames sent to the gateway's MAC, then those that fit to each VIP."""
    for frame in captured():
        yield gateway + frame[6:]
        for target in targets:
            readdressed = _to(frame, target)
            if readdressed:
                yield gateway + readdressed[6:]


def _to(frame: bytes, target: Target) -> bytes | None:
    """Return a frame with a service's address and port, None where it is of another kind."""
    ip = parse(frame)
    if ip is None or ip.family != target.vip.version or ip.protocol != target.protocol:
        return None
    changed = bytearray(frame)
    at = ip.l3 + _DESTINATION_AT[ip.family]
    changed[at : at + len(target.vip.packed)] = target.vip.packed
    if target.port:
        changed[ip.l4 + 2 : ip.l4 + 4] = target.port.to_bytes(2, "big")
    repair(changed)
    return bytes(changed)
