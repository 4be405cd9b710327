"""bpf(2), thinly: one Python function for each command that we use, file descriptors as integers.

It owns the attribute layouts of ``union bpf_attr`` (include/uapi/linux/bpf.h) and nothing else:
OSErrors of the kernel go up as they are, the callers know what they mean. Buffers are numpy arrays
or bytes, in the kernel's layout. Every function here blocks only as long as the kernel takes.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag

import numpy as np
from numpy.typing import NDArray

_SYSCALL = {"x86_64": 321, "aarch64": 280}
_libc = ctypes.CDLL(None, use_errno=True)
_brief_libc = ctypes.PyDLL(None, use_errno=True)
"""Keeps the interpreter lock. For calls of microseconds: whoever gives the lock away while another
thread is busy gets it back up to 5 ms later, and a trial makes thousands of calls."""

_FEW = 256  # elements of a batch that takes no longer than that


class Command(IntEnum):
    """``enum bpf_cmd``, as far as used."""

    MAP_CREATE = 0
    MAP_LOOKUP_ELEM = 1
    MAP_UPDATE_ELEM = 2
    MAP_DELETE_ELEM = 3
    PROG_LOAD = 5
    OBJ_PIN = 6
    OBJ_GET = 7
    PROG_TEST_RUN = 10
    PROG_GET_FD_BY_ID = 13
    MAP_GET_FD_BY_ID = 14
    OBJ_GET_INFO_BY_FD = 15
    MAP_LOOKUP_AND_DELETE_ELEM = 21
    MAP_LOOKUP_BATCH = 24
    MAP_UPDATE_BATCH = 26
    LINK_CREATE = 28
    LINK_UPDATE = 29
    LINK_GET_FD_BY_ID = 30
    LINK_GET_NEXT_ID = 31
    LINK_DETACH = 34


class MapType(IntEnum):
    """``enum bpf_map_type``, as far as used."""

    HASH = 1
    ARRAY = 2
    PROG_ARRAY = 3
    PERCPU_HASH = 5
    PERCPU_ARRAY = 6
    LRU_HASH = 9
    LPM_TRIE = 11
    DEVMAP_HASH = 25


class XdpFlag(IntFlag):
    """``XDP_FLAGS_*``: where a program runs."""

    GENERIC = 2
    NATIVE = 4


PROG_TYPE_TC = 3
PROG_TYPE_XDP = 6
ATTACH_TYPE_XDP = 37
LINK_TYPE_XDP = 6
PROG_FLAG_FRAGS = 1 << 5
TEST_RUN_LIVE_FRAMES = 1 << 1
_LOG_BYTES = 16 << 20
_LOAD_TRIES = 10  # signals during one load: more than ever come, and less than without end
_NAME_BYTES = 16


@dataclass(frozen=True, slots=True)
class MapInfo:
    """``struct bpf_map_info``: the geometry of a map as the kernel has it."""

    type: int
    id: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int
    name: str


@dataclass(frozen=True, slots=True)
class ProgramInfo:
    """``struct bpf_prog_info``. Instruction counts are in instructions, not bytes."""

    id: int
    name: str
    tag: str
    instructions: int
    jited_bytes: int
    verified_instructions: int
    map_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LinkInfo:
    """``struct bpf_link_info`` of an XDP link; ``ifindex`` is 0 once its device is gone."""

    type: int
    id: int
    program_id: int
    ifindex: int


@dataclass(frozen=True, slots=True)
class TestRun:
    """What came of a test run: XDP action, the packet, and the time of one repetition."""

    action: int
    packet: bytes
    duration_ns: int


def _name(name: str) -> bytes:
    return name.encode()[: _NAME_BYTES - 1].ljust(_NAME_BYTES, b"\0")


def _address(buffer: object) -> int:
    if isinstance(buffer, np.ndarray):
        return int(buffer.ctypes.data)
    return ctypes.addressof(buffer)  # type: ignore[arg-type]  # a ctypes array


def _bpf(
    command: Command, attributes: bytes | ctypes.Array[ctypes.c_char], *, brief: bool = False
) -> int:
    """Make the call. Raises OSError with the kernel's errno. ``brief``: it takes microseconds."""
    number = _SYSCALL.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, f"bpf(2) on {platform.machine()} is not known to lb_xdp")
    buffer = attributes
    if isinstance(buffer, bytes):
        buffer = ctypes.create_string_buffer(buffer, len(buffer))
    result = (_brief_libc if brief else _libc).syscall(number, int(command), buffer, len(buffer))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), f"bpf {command.name}")
    return int(result)


def map_create(
    kind: MapType, *, key_size: int, value_size: int, max_entries: int, flags: int, name: str
) -> int:
    """Create a map and return its file descriptor. Sizes in bytes."""
    head = struct.pack("=7I", kind, key_size, value_size, max_entries, flags, 0, 0)
    return _bpf(Command.MAP_CREATE, head + _name(name) + bytes(28))


def _element(command: Command, fd: int, key: object, value: object, flags: int = 0) -> None:
    value_address = _address(value) if value is not None else 0
    _bpf(command, struct.pack("=I4xQQQ", fd, _address(key), value_address, flags), brief=True)


def map_lookup(fd: int, key: NDArray[np.generic], value: NDArray[np.generic]) -> bool:
    """Read one element into ``value``; False if there is none."""
    try:
        _element(Command.MAP_LOOKUP_ELEM, fd, key, value)
    except FileNotFoundError:
        return False
    return True


def map_update(fd: int, key: NDArray[np.generic], value: NDArray[np.generic]) -> None:
    """Write one element, whether it exists or not."""
    _element(Command.MAP_UPDATE_ELEM, fd, key, value)


def map_delete(fd: int, key: NDArray[np.generic]) -> bool:
    """Delete one element; False if there was none."""
    try:
        _element(Command.MAP_DELETE_ELEM, fd, key, None)
    except FileNotFoundError:
        return False
    return True


def map_take(fd: int, key: NDArray[np.generic], value: NDArray[np.generic]) -> bool:
    """Delete one element and read its last value, atomically; False if there is none."""
    try:
        _element(Command.MAP_LOOKUP_AND_DELETE_ELEM, fd, key, value)
    except FileNotFoundError:
        return False
    return True


def map_lookup_batch(
    fd: int,
    keys: NDArray[np.generic],
    values: NDArray[np.generic],
    count: int,
    cursor: NDArray[np.generic],
    *,
    start: bool,
) -> tuple[int, bool]:
    """Read up to ``count`` elements. ``cursor`` carries the position from call to call.

    Returns how many were read, and whether that was the last of them (the kernel's ENOENT).
    """
    attributes = ctypes.create_string_buffer(
        struct.pack(
            "=QQQQIIQQ",
            0 if start else _address(cursor),
            _address(cursor),
            _address(keys),
            _address(values),
            count,
            fd,
            0,
            0,
        ),
        56,
    )
    last = False
    try:
        _bpf(Command.MAP_LOOKUP_BATCH, attributes, brief=count <= _FEW)
    except FileNotFoundError:
        last = True
    return struct.unpack_from("=I", attributes, 32)[0], last


def map_update_batch(fd: int, keys: NDArray[np.generic], values: NDArray[np.generic]) -> None:
    """Write as many elements as there are keys. Raises OSError; the first ones may be written."""
    attributes = struct.pack(
        "=QQQQIIQQ", 0, 0, _address(keys), _address(values), len(keys), fd, 0, 0
    )
    _bpf(Command.MAP_UPDATE_BATCH, ctypes.create_string_buffer(attributes, 56))


def program_load(
    instructions: bytes,
    name: str,
    *,
    flags: int = 0,
    log_level: int = 0,
    kind: int = PROG_TYPE_XDP,
) -> tuple[int, str]:
    """Load a program; returns its descriptor and the verifier's log (empty at level 0)."""
    log = ctypes.create_string_buffer(_LOG_BYTES if log_level else 1)
    code = ctypes.create_string_buffer(instructions, len(instructions))
    licence = ctypes.create_string_buffer(b"Dual MIT/GPL")
    attributes = struct.pack(
        "=IIQQIIQII",
        kind,
        len(instructions) // 8,
        _address(code),
        _address(licence),
        log_level,
        _LOG_BYTES if log_level else 0,
        _address(log) if log_level else 0,
        0,
        flags,
    )
    attributes += _name(name) + struct.pack(
        "=II", 0, ATTACH_TYPE_XDP if kind == PROG_TYPE_XDP else 0
    )
    try:
        fd = _load(attributes)
    except OSError as error:
        error.add_note(log.value.decode(errors="replace"))
        raise
    return fd, log.value.decode(errors="replace")


def _load(attributes: bytes) -> int:
    """Load, again where a signal came in between: then the verifier gives up with EAGAIN."""
    for _ in range(_LOAD_TRIES - 1):
        try:
            return _bpf(Command.PROG_LOAD, attributes)
        except BlockingIOError:
            continue
    return _bpf(Command.PROG_LOAD, attributes)


def _path(path: str) -> ctypes.Array[ctypes.c_char]:
    return ctypes.create_string_buffer(os.fsencode(path))


def pin(fd: int, path: str) -> None:
    """Give an object a name in bpffs, so that it outlives this process."""
    buffer = _path(path)
    _bpf(Command.OBJ_PIN, struct.pack("=QII", _address(buffer), fd, 0))


def open_pin(path: str) -> int:
    """Open a pinned object. Raises FileNotFoundError if there is none."""
    buffer = _path(path)
    return _bpf(Command.OBJ_GET, struct.pack("=QII", _address(buffer), 0, 0))


def _info(fd: int, size: int, preset: bytes = b"") -> bytes:
    info = ctypes.create_string_buffer(preset.ljust(size, b"\0"), size)
    _bpf(Command.OBJ_GET_INFO_BY_FD, struct.pack("=IIQ", fd, size, _address(info)))
    return info.raw


def _text(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode(errors="replace")


def map_info(fd: int) -> MapInfo:
    """Return the geometry of a map."""
    raw = _info(fd, 40)
    kind, map_id, key_size, value_size, entries, flags = struct.unpack_from("=6I", raw)
    return MapInfo(kind, map_id, key_size, value_size, entries, flags, _text(raw[24:40]))


def program_info(fd: int) -> ProgramInfo:
    """Return what the kernel knows of a program, the ids of its maps included."""
    map_ids = (ctypes.c_uint32 * 64)()
    # nr_map_ids stands at 52, map_ids at 56; the other arrays are not asked for.
    preset = bytes(52) + struct.pack("=IQ", len(map_ids), ctypes.addressof(map_ids))
    raw = _info(fd, 224, preset)
    _, program_id = struct.unpack_from("=II", raw)
    jited_bytes, xlated_bytes = struct.unpack_from("=II", raw, 16)
    count = struct.unpack_from("=I", raw, 52)[0]
    return ProgramInfo(
        id=program_id,
        name=_text(raw[64:80]),
        tag=raw[8:16].hex(),
        instructions=xlated_bytes // 8,
        jited_bytes=jited_bytes,
        verified_instructions=struct.unpack_from("=I", raw, 216)[0],
        map_ids=tuple(map_ids[:count]),
    )


def link_info(fd: int) -> LinkInfo:
    """Return which program an XDP link runs, and where."""
    raw = _info(fd, 32)
    kind, link_id, program_id, _, ifindex = struct.unpack_from("=5I", raw)
    return LinkInfo(kind, link_id, program_id, ifindex)


def program_open(program_id: int) -> int:
    """Open a program by its id."""
    return _bpf(Command.PROG_GET_FD_BY_ID, struct.pack("=III", program_id, 0, 0))


def map_open(map_id: int) -> int:
    """Open a map by its id."""
    return _bpf(Command.MAP_GET_FD_BY_ID, struct.pack("=III", map_id, 0, 0))


def link_open(link_id: int) -> int:
    """Open a link by its id."""
    return _bpf(Command.LINK_GET_FD_BY_ID, struct.pack("=III", link_id, 0, 0))


def link_ids() -> list[int]:
    """Return the ids of all links on this host, in ascending order."""
    ids: list[int] = []
    while True:
        buffer = ctypes.create_string_buffer(struct.pack("=III", ids[-1] if ids else 0, 0, 0), 12)
        try:
            _bpf(Command.LINK_GET_NEXT_ID, buffer)
        except FileNotFoundError:
            return ids
        ids.append(struct.unpack_from("=I", buffer, 4)[0])


def link_create(program_fd: int, ifindex: int, flags: XdpFlag) -> int:
    """Attach a program to an interface. Raises OSError EBUSY if another one is there."""
    attributes = struct.pack("=IIII", program_fd, ifindex, ATTACH_TYPE_XDP, int(flags))
    return _bpf(Command.LINK_CREATE, attributes.ljust(48, b"\0"))


def link_update(link_fd: int, new_program_fd: int) -> None:
    """Put another program in a link's place, atomically: no packet sees neither or both."""
    _bpf(Command.LINK_UPDATE, struct.pack("=IIII", link_fd, new_program_fd, 0, 0))


def link_detach(link_fd: int) -> None:
    """Take a link off its interface, whoever else holds it."""
    _bpf(Command.LINK_DETACH, struct.pack("=I", link_fd))


def program_test_run(
    program_fd: int, packet: bytes, *, ifindex: int | None, repeat: int = 1, queue: int = 0
) -> TestRun:
    """Run a program on one packet, as if it came by ``ifindex``; None is loopback (XDP and tc).

    The kernel does not restore the packet between repetitions, and maps are really changed.
    """
    data_in = ctypes.create_string_buffer(packet, len(packet))
    out_bytes = len(packet) + 512
    data_out = ctypes.create_string_buffer(out_bytes)
    context = ctypes.create_string_buffer(
        struct.pack("=6I", 0, len(packet), 0, ifindex or 0, queue, 0), 24
    )
    attributes = ctypes.create_string_buffer(
        struct.pack(
            "=IIIIQQIIIIQQIII4x",
            program_fd,
            0,
            len(packet),
            out_bytes,
            _address(data_in),
            _address(data_out),
            repeat,
            0,
            0 if ifindex is None else 24,
            0,
            0 if ifindex is None else _address(context),
            0,
            0,
            0,
            0,
        ),
        80,
    )
    _bpf(Command.PROG_TEST_RUN, attributes, brief=repeat == 1)
    action, _, size = struct.unpack_from("=III", attributes, 4)
    duration = struct.unpack_from("=I", attributes, 36)[0]
    return TestRun(action, data_out.raw[:size], duration)


def program_send(
    program_fd: int, packet: bytes, *, ifindex: int, repeat: int, batch: int = 64
) -> None:
    """Run a program on copies of a packet that the kernel really treats as the program says.

    They seem to come by ``ifindex``; what gets XDP_TX is sent by it. Copies are used again as they
    come back, with whatever was written into them.
    """
    data_in = ctypes.create_string_buffer(packet, len(packet))
    context = ctypes.create_string_buffer(struct.pack("=6I", 0, len(packet), 0, ifindex, 0, 0), 24)
    attributes = struct.pack(
        "=IIIIQQIIIIQQIII4x",
        program_fd,
        0,
        len(packet),
        0,
        _address(data_in),
        0,
        repeat,
        0,
        24,
        0,
        _address(context),
        0,
        TEST_RUN_LIVE_FRAMES,
        0,
        batch,
    )
    _bpf(Command.PROG_TEST_RUN, attributes)
