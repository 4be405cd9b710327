"""Good frames made worse, and frames that answer others, for the fuzzer."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from ipaddress import ip_address
from random import Random

from lb_xdp.core.reference import build
from tests.support import program
from tests.support.wellformed import ICMP, ICMPV6, parse, repair

ETHERNET_BYTES = 14
MAX_FRAME_BYTES = 12_000
_INTERESTING = (0, 1, 2, 4, 5, 6, 7, 8, 15, 16, 17, 43, 44, 58, 60, 64, 69, 96, 127, 128, 254, 255)
_REACTIONS = 256


class Spoiler:
    """Takes good frames and makes them worse; ``hear`` lets it react to what came out."""

    def __init__(self, frames: Sequence[bytes], random: Random) -> None:
        self._frames = frames
        self._random = random
        self._reactions: deque[bytes] = deque(maxlen=_REACTIONS)
        self._ways = (
            self._cut,
            self._flip,
            self._flip,
            self._set,
            self._set,
            self._word,
            self._splice,
            self._insert,
            self._noise,
        )

    def __iter__(self) -> Iterator[bytes]:
        random = self._random
        while True:
            if self._reactions and random.random() < 0.2:
                frame = bytearray(self._reactions.popleft())
            else:
                frame = bytearray(random.choice(self._frames))
            luck = random.random()
            if luck < 0.15:
                yield bytes(frame)
                continue
            for _ in range(1 if luck < 0.8 else random.randrange(2, 5)):
                random.choice(self._ways)(frame)
            if random.random() < 0.5:
                repair(frame)
            del frame[MAX_FRAME_BYTES:]
            yield bytes(frame.ljust(ETHERNET_BYTES, b"\0"))

    def hear(self, reason: str, frame: bytes) -> None:
        """Answer a forwarded frame later, as its receiver would or a router on the way."""
        if reason == "forwarded" and self._random.random() < 0.3:
            react = self._random.choice((reply_to, reply_to, error_about))
            reaction = react(frame, self._random)
            if reaction is not None:
                self._reactions.append(reaction)

    def _at(self, frame: bytearray) -> int:
        """Pick an octet, one of the headers' more often than not."""
        near = min(len(frame), 100 if self._random.random() < 0.9 else len(frame))
        return int(self._random.random() * near)

    def _cut(self, frame: bytearray) -> None:
        del frame[max(ETHERNET_BYTES, self._at(frame)) :]

    def _flip(self, frame: bytearray) -> None:
        frame[self._at(frame)] ^= 1 << self._random.randrange(8)

    def _set(self, frame: bytearray) -> None:
        frame[self._at(frame)] = self._random.choice(_INTERESTING)

    def _word(self, frame: bytearray) -> None:
        at = self._at(frame) & ~1
        value = self._random.choice((0, 1, 20, 28, 40, 48, 1500, 0x7FFF, 0xFFFF, len(frame) - 14))
        frame[at : at + 2] = (value & 0xFFFF).to_bytes(2)

    def _splice(self, frame: bytearray) -> None:
        other = self._random.choice(self._frames)
        at = self._random.choice((12, 14, 34, 54, 62))
        frame[at:] = other[self._random.choice((at, 14, 34, 54)) :]

    def _insert(self, frame: bytearray) -> None:
        at = self._random.choice((12, 14, 18, 34, 54, len(frame)))
        frame[at:at] = self._random.choice(
            (b"\x81\x00\x00\x05", b"\x88\xa8\x00\x01", bytes(8), b"\x3c\x00\x01\x04\0\0\0\0")
        )

    def _noise(self, frame: bytearray) -> None:
        at = self._at(frame)
        frame[at : at + 8] = self._random.randbytes(min(8, len(frame) - at))


def _gateway_to(frame: bytes) -> bytes:
    """Return the MACs of an answer; the program wrote its own interface's as the source."""
    return bytes.fromhex(program.GATEWAY_MAC.replace(":", "")) + frame[:6]


def reply_to(frame: bytes, _: Random) -> bytes | None:
    """Return what the receiver of a TCP or UDP packet may send back."""
    ip = parse(frame)
    if ip is None or ip.later or ip.protocol not in {6, 17}:
        return None
    answer = bytearray(frame)
    answer[:12] = _gateway_to(frame)
    at = ip.l3 + (12 if ip.family == 4 else 8)
    answer[at : at + 2 * len(ip.source)] = ip.destination + ip.source
    answer[ip.l4 : ip.l4 + 4] = frame[ip.l4 + 2 : ip.l4 + 4] + frame[ip.l4 : ip.l4 + 2]
    repair(answer)
    return bytes(answer)


def error_about(frame: bytes, random: Random) -> bytes | None:
    """Return what a router may say of a packet: to its source, quoting more or less of it."""
    ip = parse(frame)
    if ip is None:
        return None
    protocol, kinds = ICMPV6, ((1, 0, 0), (2, 0, 1300), (3, 0, 0), (4, 0, 40))
    if ip.family == 4:
        protocol, kinds = ICMP, ((3, 4, 1300), (3, 3, 0), (11, 0, 0), (12, 0, 0))
    header = ip.l4 - ip.l3
    quoted = frame[ip.l3 : ip.l3 + header + random.choice((8, 8, 28, 56, 64, 500))]
    router, source = ip_address(ip.destination), ip_address(ip.source)
    packet = build.ip(router, source, protocol, build.icmp(*random.choice(kinds), quoted))
    macs = _gateway_to(frame)
    return build.ethernet(packet, macs[:6], macs[6:])


def truncations(frames: Sequence[bytes]) -> Iterator[bytes]:
    """Yield each frame cut at each octet of its headers, and a few of its payload."""
    for frame in frames:
        for octets in range(ETHERNET_BYTES, min(len(frame), 150)):
            yield frame[:octets]
