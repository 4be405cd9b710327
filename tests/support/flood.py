"""A SYN flood from everywhere: ``python -m tests.support.flood OPTIONS``, options as JSON.

Sends TCP SYNs for one IPv4 address and port, each from a random address of 10.64.0.0/10 and a
random port, as fast as one CPU can. Their TCP checksums are wrong on purpose: a gateway need not
look at those, and the servers behind it drop such segments instead of answering millions.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import socket
import subprocess
import sys
import time
from ipaddress import IPv4Address
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.support.lab import Host

_AT_ONCE = 256
_FRAME_BYTES = 60
_PAUSE_S = 0.0005
"""While the cable is full."""
_HEADERS = np.dtype([
    ("destination_mac", "u1", 6),
    ("source_mac", "u1", 6),
    ("type", ">u2"),
    ("version", ">u2"),
    ("length", ">u2"),
    ("id", ">u2"),
    ("fragment", ">u2"),
    ("ttl_protocol", ">u2"),
    ("checksum", ">u2"),
    ("source", ">u4"),
    ("destination", ">u4"),
    ("source_port", ">u2"),
    ("destination_port", ">u2"),
    ("sequence", ">u4"),
    ("acknowledgment", ">u4"),
    ("flags", ">u2"),
    ("window", ">u2"),
    ("tcp_checksum", ">u2"),
    ("urgent", ">u2"),
    ("padding", "u1", 6),
])  # fmt: skip
_MESSAGE = np.dtype(
    {
        "names": ["vector", "count"],
        "formats": ["u8", "u8"],
        "offsets": [16, 24],  # of struct mmsghdr, which begins with a struct msghdr
        "itemsize": 64,
    }
)
_VECTOR = np.dtype([("base", "u8"), ("length", "u8")])

Frames = npt.NDArray[np.void]


def flood(
    host: Host, interface: str, next_hop_mac: str, target: tuple[str, int], *, count: int
) -> int:
    """Send ``count`` SYNs, and return when the last one is out how many the cable took."""
    options = {
        "interface": interface,
        "source_mac": host.mac(interface),
        "destination_mac": next_hop_mac,
        "target": target[0],
        "port": target[1],
        "count": count,
    }
    command = (sys.executable, "-m", "tests.support.flood", json.dumps(options))
    process = host.popen(*command, stdout=subprocess.PIPE)
    said, _ = process.communicate(timeout=120)
    return int(said)


def _template(options: dict[str, Any]) -> Frames:
    frames = np.zeros(_AT_ONCE, _HEADERS)
    for end in ("source_mac", "destination_mac"):
        frames[end] = np.frombuffer(bytes.fromhex(options[end].replace(":", "")), np.uint8)
    frames["type"] = 0x0800
    frames["version"] = 0x4500
    frames["length"] = 40
    frames["fragment"] = 0x4000  # do not
    frames["ttl_protocol"] = 64 << 8 | socket.IPPROTO_TCP
    frames["destination"] = int(IPv4Address(options["target"]))
    frames["destination_port"] = options["port"]
    frames["flags"] = 0x5002  # five words, SYN
    frames["window"] = 64_240
    return frames


def _randomise(frames: Frames, random: np.random.Generator) -> None:
    frames["source"] = random.integers(0x0A40_0000, 0x0A80_0000, _AT_ONCE)
    frames["source_port"] = random.integers(1024, 65_536, _AT_ONCE)
    frames["sequence"] = random.integers(0, 1 << 32, _AT_ONCE)
    frames["checksum"] = 0
    words = frames.view(np.uint8).reshape(_AT_ONCE, _FRAME_BYTES)[:, 14:34].view(">u2")
    total = words.sum(axis=1, dtype=np.uint32)
    total = (total & 0xFFFF) + (total >> 16)
    frames["checksum"] = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF


def _send_all(options: dict[str, Any]) -> int:
    send = ctypes.CDLL(None, use_errno=True).sendmmsg
    frames = _template(options)
    vectors, messages = np.zeros(_AT_ONCE, _VECTOR), np.zeros(_AT_ONCE, _MESSAGE)
    vectors["base"] = frames.ctypes.data + _FRAME_BYTES * np.arange(_AT_ONCE)
    vectors["length"] = _FRAME_BYTES
    messages["vector"] = vectors.ctypes.data + _VECTOR.itemsize * np.arange(_AT_ONCE)
    messages["count"] = 1
    random = np.random.default_rng()
    sent = 0
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as wire:
        wire.bind((options["interface"], 0))
        while sent < options["count"]:
            _randomise(frames, random)
            done = send(wire.fileno(), ctypes.c_void_p(messages.ctypes.data), _AT_ONCE, 0)
            if done < 0 and ctypes.get_errno() != errno.ENOBUFS:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            if done < 0:
                time.sleep(_PAUSE_S)
            sent += max(0, done)
    return sent


if __name__ == "__main__":
    sys.stdout.write(str(_send_all(json.loads(sys.argv[1]))))
