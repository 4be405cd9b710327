"""The clients' process: ``python -m tests.support.load short|held OPTIONS``, options as JSON.

Speaks just enough HTTP over plain sockets to open a thousand connections per second, and writes
its result as JSON when it is done or gets SIGTERM. ``clients`` starts it and reads the result.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
import socket
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

_IP_BIND_ADDRESS_NO_PORT = 24
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_AT_A_TIME = 64


class WrongAnswerError(Exception):
    """The server answered, but not as it should."""


class _Requests:
    """Short connections: begins them at the pace asked for, and notes what becomes of each."""

    def __init__(self, options: dict[str, Any], stop: asyncio.Event) -> None:
        self._target = (options["address"], options["port"])
        self._options = options
        self._sources = _sources(options)
        self._stop = stop
        self._running: set[asyncio.Task[None]] = set()
        self._free = asyncio.Semaphore(_AT_A_TIME)
        self._backends: dict[str, int] = {}
        self._failures: list[dict[str, Any]] = []
        self._slowest_s = 0.0
        request = f"GET {options['path']} HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n"
        self._request = request.encode()

    async def run(self) -> dict[str, Any]:
        begun = time.monotonic()
        pace = self._keep_rate if self._options["rate_per_s"] else self._keep_busy
        requests = await pace(begun)
        if self._running:
            await asyncio.wait(self._running)
        return {
            "requests": requests,
            "backends": self._backends,
            "failures": self._failures,
            "elapsed_s": time.monotonic() - begun,
            "slowest_s": self._slowest_s,
        }

    async def _keep_rate(self, begun: float) -> int:
        """Begin each request at its moment; sleep only while ahead of the plan."""
        requests = 0
        while not self._is_done(requests, begun):
            ahead_s = begun + requests / self._options["rate_per_s"] - time.monotonic()
            if ahead_s > 0:
                await asyncio.sleep(ahead_s)
                continue
            self._begin()
            requests += 1
            if requests % 16 == 0:
                await asyncio.sleep(0)
        return requests

    async def _keep_busy(self, begun: float) -> int:
        requests = 0
        while not self._is_done(requests, begun):
            await self._free.acquire()
            self._begin().add_done_callback(lambda _task: self._free.release())
            requests += 1
        return requests

    def _is_done(self, requests: int, begun: float) -> bool:
        count, seconds = self._options["count"], self._options["seconds"]
        enough = bool(count) and requests >= count
        late = bool(seconds) and time.monotonic() - begun >= seconds
        return enough or late or self._stop.is_set()

    def _begin(self) -> asyncio.Task[None]:
        task = asyncio.create_task(self._request_once())
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    async def _request_once(self) -> None:
        begun = time.monotonic()
        source = next(self._sources)
        name = "{}:{}".format(*source)
        try:
            with _open_socket(self._target[0], *source) as connection:
                # The reset leaves no TIME_WAIT behind, here or there: ports stay free.
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
                try:
                    async with asyncio.timeout(self._options["timeout_s"]):
                        backend = await self._ask(connection)
                finally:  # only now the kernel has chosen the port
                    name = _name_of(connection)
        except (OSError, WrongAnswerError) as error:
            self._note_failure(begun, name, error)
        else:
            self._backends[backend] = self._backends.get(backend, 0) + 1
        self._slowest_s = max(self._slowest_s, time.monotonic() - begun)

    async def _ask(self, connection: socket.socket) -> str:
        loop = asyncio.get_running_loop()
        await loop.sock_connect(connection, self._target)
        await loop.sock_sendall(connection, self._request)
        answer = b""
        while piece := await loop.sock_recv(connection, 65536):
            answer += piece
        return _backend_of(answer)

    def _note_failure(self, begun: float, source: str, error: Exception) -> None:
        self._failures.append(
            {
                "at_s": begun,
                "took_s": time.monotonic() - begun,
                "error": f"{type(error).__name__}: {error}",
                "source": source,
            }
        )


class _Held:
    """One keep-alive connection."""

    def __init__(self, options: dict[str, Any], source: str, *, idle: bool) -> None:
        self._options = options
        self._idle = idle
        self._socket = _open_socket(options["address"], source)
        self._source = source
        self._backend = ""
        self._requests = 0
        self._broken_at_s: float | None = None
        self._error = ""

    async def open(self) -> None:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(self._options["timeout_s"]):
            await loop.sock_connect(self._socket, (self._options["address"], self._options["port"]))
            self._source = _name_of(self._socket)
            self._backend = await self._ask()

    async def keep_asking(self, stop: asyncio.Event) -> None:
        """Ask at intervals until ``stop``; an idle connection just once, then."""
        while not self._broken_at_s:
            pause_s = None if self._idle else self._options["interval_s"]
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), pause_s)
            if stop.is_set() and not self._idle:
                return
            await self._ask_again()
            if stop.is_set():
                return

    async def _ask_again(self) -> None:
        try:
            async with asyncio.timeout(self._options["timeout_s"]):
                answered_by = await self._ask()
        except (OSError, WrongAnswerError) as error:
            self._broken_at_s = time.monotonic()
            self._error = f"{type(error).__name__}: {error}"
            return
        if answered_by != self._backend:
            self._broken_at_s = time.monotonic()
            self._error = f"{answered_by} answered instead of {self._backend}"

    def close(self) -> dict[str, Any]:
        self._socket.close()
        return {
            "source": self._source,
            "backend": self._backend,
            "requests": self._requests,
            "broken_at_s": self._broken_at_s,
            "error": self._error,
        }

    async def _ask(self) -> str:
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(self._socket, b"GET / HTTP/1.1\r\nHost: lab\r\n\r\n")
        answer = b""
        while not _is_whole(answer):
            piece = await loop.sock_recv(self._socket, 65536)
            if not piece:
                raise WrongAnswerError("closed by the server")
            answer += piece
        self._requests += 1
        return _backend_of(answer)


def _sources(options: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """Yield an address and a port (0: the kernel's choice) for each connection of this process."""
    sources, first_port = options["sources"], options["first_port"]
    for number in itertools.count(options["number"], options["processes"]):
        turn, place = divmod(number, len(sources))
        yield sources[place], first_port + turn if first_port else 0


def _name_of(connection: socket.socket) -> str:
    address, port = connection.getsockname()[:2]
    return f"{address}:{port}"


def _open_socket(target: str, source: str, port: int = 0) -> socket.socket:
    family = socket.AF_INET6 if ":" in target else socket.AF_INET
    connection = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    if port:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        connection.bind((source, port))
    elif source:
        # Choose the port at connect: one port then serves many destinations.
        connection.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
        connection.bind((source, 0))
    return connection


def _headers_of(answer: bytes) -> dict[bytes, bytes]:
    lines = answer.partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]
    pairs = (line.partition(b": ") for line in lines)
    return {name.lower(): value for name, _, value in pairs}


def _is_whole(answer: bytes) -> bool:
    head, end, body = answer.partition(b"\r\n\r\n")
    return bool(end) and len(body) >= int(_headers_of(head + end)[b"content-length"])


def _backend_of(answer: bytes) -> str:
    if not answer.startswith(b"HTTP/1.1 200 "):
        raise WrongAnswerError(f"answered {answer[:30]!r}")
    if not _is_whole(answer):
        raise WrongAnswerError(f"cut off after {len(answer)} bytes")
    return _headers_of(answer)[b"x-backend"].decode()


async def _short(options: dict[str, Any], stop: asyncio.Event) -> dict[str, Any]:
    return await _Requests(options, stop).run()


async def _held(options: dict[str, Any], stop: asyncio.Event) -> list[dict[str, Any]]:
    sources = itertools.islice(itertools.cycle(options["sources"]), options["count"])
    idle = options["idle"]
    connections = [_Held(options, source, idle=n < idle) for n, source in enumerate(sources)]
    for connection in connections:
        await connection.open()
    sys.stdout.write("all open\n")
    sys.stdout.flush()
    await asyncio.gather(*(connection.keep_asking(stop) for connection in connections))
    return [connection.close() for connection in connections]


async def _main(what: str, options: dict[str, Any]) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    result = await {"short": _short, "held": _held}[what](options, stop)
    sys.stdout.write(json.dumps(result))


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], json.loads(sys.argv[2])))
