"""systemd is told everything in order, and nobody waits for it to listen."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from lb_xdp.supervisor import Supervisor

_RELOADS = 12  # two messages each: more than net.unix.max_dgram_qlen, and less than are kept


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """Return a socket that is named to us as systemd's, and that nobody reads yet."""
    path = tmp_path / "notify"
    monkeypatch.setenv("NOTIFY_SOCKET", str(path))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(path))
        channel.settimeout(0)
        yield channel


async def _read(channel: socket.socket, messages: int) -> list[str]:
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(10):
        return [(await loop.sock_recv(channel, 256)).decode() for _ in range(messages)]


def test_who_tells_does_not_wait_and_what_was_told_arrives_in_order(systemd: socket.socket) -> None:
    async def told() -> list[str]:
        supervisor = Supervisor()
        supervisor.tell("READY=1\nSTATUS=forwarding")
        for _ in range(_RELOADS):
            with supervisor.reloading():
                pass
        supervisor.tell("STOPPING=1")
        said = await _read(systemd, 2 * _RELOADS + 2)
        supervisor.close()
        return said

    first, *between, last = asyncio.run(told())
    assert first == "READY=1\nSTATUS=forwarding"
    assert last == "STOPPING=1"
    assert all(said.startswith("RELOADING=1\nMONOTONIC_USEC=") for said in between[::2])
    assert between[1::2] == ["READY=1"] * _RELOADS


def test_a_failed_reload_ends_as_well(systemd: socket.socket) -> None:
    async def told() -> list[str]:
        supervisor = Supervisor()
        with pytest.raises(ValueError, match="refused"), supervisor.reloading():
            raise ValueError("refused")
        supervisor.close()
        return await _read(systemd, 2)

    assert asyncio.run(told())[-1] == "READY=1"


def test_a_listener_that_is_gone_is_no_error_and_one_that_comes_back_is_told(
    systemd: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    path = systemd.getsockname()

    async def told() -> list[str]:
        supervisor = Supervisor()
        _end(systemd)
        supervisor.tell("WATCHDOG=1")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as again:
            again.bind(path)
            again.settimeout(0)
            supervisor.tell("READY=1")
            said = await _read(again, 1)
        supervisor.close()
        return said

    assert asyncio.run(told()) == ["READY=1"]
    assert "cannot be told" in caplog.text


def _end(listener: socket.socket) -> None:
    path = Path(listener.getsockname())
    listener.close()
    path.unlink()


def test_silence_without_systemd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)

    async def tell() -> None:
        supervisor = Supervisor()
        supervisor.tell("READY=1")
        supervisor.close()

    asyncio.run(tell())
