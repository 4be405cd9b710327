"""The smallest XDP program, ``return XDP_PASS``, for interfaces that face the gateway.

A veth frame sent by XDP_TX or XDP_REDIRECT arrives only where the receiving end has an XDP program
too. This module owns making and pinning that program, by hand-written instructions, so that the
lab works without a compiler and without any code of lb_xdp.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from pathlib import Path

_SYS_BPF = {"x86_64": 321, "aarch64": 280}
_BPF_PROG_LOAD = 5
_BPF_OBJ_PIN = 6
_BPF_PROG_GET_FD_BY_ID = 13
_BPF_PROG_TYPE_XDP = 6

# struct bpf_insn: opcode, registers, offset, immediate. r0 = 2 (XDP_PASS); exit.
_INSTRUCTIONS = struct.pack("=BBhiBBhi", 0xB7, 0, 0, 2, 0x95, 0, 0, 0)

_libc = ctypes.CDLL(None, use_errno=True)


def pin(path: Path) -> None:
    """Load the program and pin it at ``path`` on a bpffs, unless it is there already."""
    if path.exists():
        return
    instructions = ctypes.create_string_buffer(_INSTRUCTIONS)
    licence = ctypes.create_string_buffer(b"GPL")
    count = len(_INSTRUCTIONS) // 8
    attributes = struct.pack(
        "=IIQQ",
        _BPF_PROG_TYPE_XDP,
        count,
        ctypes.addressof(instructions),
        ctypes.addressof(licence),
    )
    program = _bpf(_BPF_PROG_LOAD, attributes.ljust(144, b"\0"))
    try:
        name = ctypes.create_string_buffer(os.fsencode(path))
        _bpf(_BPF_OBJ_PIN, struct.pack("=QII", ctypes.addressof(name), program, 0))
    finally:
        os.close(program)


def program_exists(program_id: int) -> bool:
    """Say whether the kernel still holds the BPF program ``program_id``, on the whole machine."""
    try:
        os.close(_bpf(_BPF_PROG_GET_FD_BY_ID, struct.pack("=III", program_id, 0, 0)))
    except FileNotFoundError:
        return False
    return True


def _bpf(command: int, attributes: bytes) -> int:
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    number = _SYS_BPF[platform.machine()]
    result: int = _libc.syscall(number, command, buffer, len(attributes))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"bpf command {command}: {os.strerror(error)}")
    return result
