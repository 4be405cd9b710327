"""From instructions to a program in the kernel: map descriptors put in, verifier heard.

A refused program raises VerifierError, whose ``log`` is everything that the verifier said.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from lb_xdp.datapath import syscall
from lb_xdp.errors import DatapathError, PrivilegeError, UnsupportedError, VerifierError

PROGRAM_NAME = "lb_gateway"
_LD_IMM64 = 0x18
_PSEUDO_MAP_FD = 1
_LOG_TAIL_LINES = 12


@dataclass(frozen=True, slots=True)
class Program:
    """A loaded program. Whoever has it closes ``fd``."""

    fd: int
    id: int


def put_descriptors(instructions: bytes, descriptors: Mapping[int, int]) -> bytes:
    """Replace placeholders by descriptors. Raises DatapathError for a map that has none."""
    code = bytearray(instructions)
    for at in range(0, len(code), 8):
        opcode, registers, _, value = struct.unpack_from("=BBhi", code, at)
        if opcode != _LD_IMM64 or registers >> 4 != _PSEUDO_MAP_FD:
            continue
        if value not in descriptors:
            raise DatapathError(f"the program refers to a map that nobody made: {value:#x}")
        struct.pack_into("=i", code, at + 4, descriptors[value])
    return bytes(code)


def load_program(
    instructions: bytes,
    descriptors: Mapping[int, int],
    name: str = PROGRAM_NAME,
    flags: int = syscall.PROG_FLAG_FRAGS,
    kind: int = syscall.PROG_TYPE_XDP,
) -> Program:
    """Load a program. Raises VerifierError, PrivilegeError, UnsupportedError.

    ``descriptors`` maps the placeholders of ``compile.placeholder`` onto open maps. ``kind`` is a
    ``syscall.PROG_TYPE_*``. The log costs time and memory, so it is asked for only when the kernel
    has refused.
    """
    code = put_descriptors(instructions, descriptors)
    try:
        fd, _ = syscall.program_load(code, name, flags=flags, kind=kind)
    except OSError as error:
        if error.errno == errno.EPERM:
            raise PrivilegeError("may not load BPF programs: run lb-xdp as root") from error
        raise _refused(code, name, flags, kind, error) from error
    return Program(fd, syscall.program_info(fd).id)


def _refused(code: bytes, name: str, flags: int, kind: int, first: OSError) -> DatapathError:
    log = ""
    try:
        fd, _ = syscall.program_load(code, name, flags=flags, log_level=1, kind=kind)
        os.close(fd)
    except OSError as error:
        log = "\n".join(getattr(error, "__notes__", []))
    release = os.uname().release
    if not log and first.errno == errno.EINVAL:
        # The verifier was not even asked: the kernel does not know a flag of the request.
        return UnsupportedError(
            "XDP for multi-buffer frames", release, "Linux 5.18 or later has it"
        )
    said = [line for line in log.splitlines() if line and not line.startswith("processed")]
    tail = "\n  ".join(said[-_LOG_TAIL_LINES:]) or "(no log)"
    return VerifierError(
        f"kernel {release} refuses the program {name}: {first.strerror}. What was "
        f"forwarding goes on. The verifier's last words:\n  {tail}",
        log=log,
    )
