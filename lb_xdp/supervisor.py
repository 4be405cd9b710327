"""What systemd is told (sd_notify(3)), and how often it wants to hear (sd_watchdog_enabled(3)).

Telling never waits: the socket holds a few messages, and a supervisor that is stopped or slow to
read them must not hold up who decides. What does not fit is sent in order once there is room.
Without systemd all of this is silent.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

_log = logging.getLogger(__name__)

_UNTOLD_MAX = 32
"""Messages that wait for room; beyond them the oldest are of no interest any more."""


def watchdog_s() -> float:
    """Return how often systemd wants a sign of life; 0: not at all."""
    meant = os.environ.get("WATCHDOG_PID", str(os.getpid()))
    interval_us = os.environ.get("WATCHDOG_USEC", "")
    return int(interval_us) / 1e6 if interval_us.isdigit() and meant == str(os.getpid()) else 0.0


class Supervisor:
    """Made and used in the event loop."""

    def __init__(self) -> None:
        self._address = os.environ.get("NOTIFY_SOCKET", "")
        if self._address.startswith("@"):
            self._address = "\0" + self._address[1:]
        self._untold: deque[bytes] = deque(maxlen=_UNTOLD_MAX)
        self._channel: socket.socket | None = None

    def tell(self, message: str) -> None:
        """Send ``READY=1``, ``STOPPING=1`` ..., now or as soon as there is room."""
        if self._address:
            self._untold.append(message.encode())
            self._send()

    @contextmanager
    def reloading(self) -> Iterator[None]:
        """Tell that another configuration is taken, and at the end, whatever it is, that it was."""
        self.tell(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            yield
        finally:
            self.tell("READY=1")

    def _send(self) -> None:
        try:
            if self._channel is None:
                self._channel = self._connected()
            while self._untold:
                self._channel.send(self._untold[0])
                self._untold.popleft()
        except BlockingIOError:
            if self._channel is not None:
                asyncio.get_running_loop().add_writer(self._channel, self._send)
        except OSError as error:
            _log.warning("systemd cannot be told by %s: %s", self._address, error.strerror)
            self._untold.clear()
            self.close()
        else:
            asyncio.get_running_loop().remove_writer(self._channel)

    def _connected(self) -> socket.socket:
        """Return a socket that is writable when the other end has room: poll(2) needs the peer."""
        channel = socket.socket(
            socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        )
        try:
            channel.connect(self._address)
        except OSError:
            channel.close()
            raise
        return channel

    def close(self) -> None:
        """Send no more."""
        if self._channel is not None:
            asyncio.get_running_loop().remove_writer(self._channel)
            self._channel.close()
            self._channel = None
