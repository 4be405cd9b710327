"""A slow door: ``python -m tests.support.slow PORT TARGET_PORT`` relays TCP, late at first.

Each line on standard input is how many seconds the first bytes of a connection that comes from now
on have to wait. It owns the wait; getting connections to come here is ``faults``'s.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress


class Door:
    """Where connections come in; ``delay_s`` is what one of them waits."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self.delay_s = 0.0

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection from its first byte to its last."""
        delay_s = self.delay_s
        with suppress(OSError):
            first = await reader.read(65536)
            await asyncio.sleep(delay_s)
            inner_reader, inner_writer = await asyncio.open_connection(
                "127.0.0.1", self._target_port
            )
            inner_writer.write(first)
            await asyncio.gather(_relay(reader, inner_writer), _relay(inner_reader, writer))


async def _relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while piece := await reader.read(65536):
            writer.write(piece)
            await writer.drain()
    writer.close()


async def _main(port: int, target_port: int) -> None:
    door = Door(target_port)
    lines = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    async with await asyncio.start_server(door.take, "0.0.0.0", port, backlog=4096):
        while line := await lines.readline():
            door.delay_s = float(line)
            sys.stdout.write("as you say\n")
            sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1]), int(sys.argv[2])))
