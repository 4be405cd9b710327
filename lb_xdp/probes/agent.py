"""One agent probe: a line of text by which a backend says how it is, and what it wishes.

The words are those of HAProxy's agent-check, so that agents which exist can stay. Each answer says
all there is: what it leaves out is not advised any more. The line ends at LF, CR or the
connection's end.
"""

from __future__ import annotations

import re
from typing import Final

from lb_xdp.core.health import Advice, Target
from lb_xdp.core.snapshot import Admin
from lb_xdp.probes.attempt import Answer, ProbeFailedError, first_words
from lb_xdp.probes.connection import connect

LINE_LIMIT_BYTES: Final = 1024

_ADMIN: Final = {"ready": Admin.READY, "drain": Admin.DRAIN, "maint": Admin.MAINT}
_DOWN: Final = frozenset({"down", "fail", "failed", "stopped"})
_WEIGHT: Final = re.compile(r"([0-9]{1,4})%", re.ASCII)
_LIMIT: Final = re.compile(r"maxconn:[0-9]{1,10}", re.ASCII)


class AgentExchange:
    """Connects to an agent, says what the check has for it, and reads its line."""

    def __init__(self, target: Target) -> None:
        self._target = target

    async def ask(self) -> Answer:
        """Ask once."""
        target = self._target
        connection = await connect(target.address, target.port)
        try:
            if target.check.payload.send:
                await connection.send(target.check.payload.send)
            line = b""
            while not _ended(line) and (data := await connection.receive()):
                line += data
        finally:
            connection.close()
        return read_line(line)

    def close(self) -> None:
        """Nothing is kept."""


def _ended(line: bytes) -> bool:
    return b"\n" in line or b"\r" in line or len(line) > LINE_LIMIT_BYTES


def read_line(line: bytes) -> Answer:
    """Return what an agent said. Raises ProbeFailedError, with its advice, where that is "down".

    Words are separated by blanks, tabs or commas; what follows ``#`` is for people.
    """
    said, _, comment = (
        re.split(rb"[\r\n]", line, maxsplit=1)[0].decode("utf-8", "replace").partition("#")
    )
    words = re.split(r"[ \t,]+", said.strip().lower())
    detail = first_words(f"agent: {said.strip()}{f' ({comment.strip()})' if comment else ''}")
    if not said.strip():
        raise ProbeFailedError("agent: connection closed without a word")
    share, admin, down = None, None, False
    for word in words:
        if weight := _WEIGHT.fullmatch(word):
            share = int(weight.group(1)) / 100
        elif word in _ADMIN:
            admin = _ADMIN[word]
        elif word in _DOWN:
            down = True
        elif word != "up" and not _LIMIT.fullmatch(word):
            raise ProbeFailedError(f"agent: {first_words(word)} is no word of agents")
    advice = Advice(share, admin)
    if down:
        raise ProbeFailedError(detail, advice)
    return Answer(detail, advice)
