"""What all probes share: the time limit, the stopwatch, and the words for what went wrong.

Owns the translation of network failures into a ``ProbeResult``. Refuses to know any protocol.
"""

from __future__ import annotations

import errno
import os
import ssl
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

from lb_xdp.core.health import Advice, ProbeResult
from lb_xdp.probes.waits import Limit, here

Clock = Callable[[], float]
"""Seconds that never run backwards, as ``time.monotonic``."""

WORDS_LIMIT: Final = 60
"""How much of what a backend says gets into a detail."""


class Answer(NamedTuple):
    """A good answer: what it said in words, and what an agent advised."""

    detail: str
    advice: Advice | None = None


class ProbeFailedError(Exception):
    """The backend answered, and the answer is no; the message is the result's detail."""

    def __init__(self, detail: str, advice: Advice | None = None) -> None:
        super().__init__(detail)
        self.advice = advice


class Exchange(Protocol):
    """One question to one target, asked again and again, one at a time."""

    async def ask(self) -> Answer:
        """Ask once. Raises ProbeFailedError or OSError; a cancellation leaves nothing open."""

    def close(self) -> None:
        """Let go of what is kept between questions."""


async def attempt(timeout_s: float, clock: Clock, exchange: Exchange) -> ProbeResult:
    """Ask, for at most ``timeout_s``, and say how it went.

    ``ProbeFailedError`` and ``OSError`` of the exchange do not get out of here; cancellation does.
    """
    started_at_s = clock()
    ok, advice = False, None
    try:
        with Limit(here(), timeout_s):
            detail, advice = await exchange.ask()
        ok = True
    except TimeoutError as error:  # ours has no number, the network's own has
        detail = describe(error) if error.errno else f"timed out after {timeout_s:g} s"
    except OSError as error:
        detail = describe(error)
    except ProbeFailedError as error:
        detail, advice = str(error), error.advice
    ended_at_s = clock()
    return ProbeResult(ok, detail, ended_at_s - started_at_s, ended_at_s, advice)


def describe(error: OSError) -> str:
    """Return the system's words for an error, without numbers and addresses: ``no route to host``.

    Our own shortages are named as such: they must not read as if the backend were at fault.
    """
    if isinstance(error, ssl.SSLError):
        return _describe_tls(error)
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return "the prober has no file descriptors left"
    if error.errno == errno.EADDRNOTAVAIL:
        return "the prober has no local ports left"
    return os.strerror(error.errno).lower() if error.errno else "connection failed"


def _describe_tls(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"TLS: {first_words(error.verify_message.rstrip('.'), 100)}"
    return f"TLS: {(error.reason or 'connection closed').replace('_', ' ').lower()}"


def first_words(text: str | bytes, limit: int = WORDS_LIMIT) -> str:
    """Return a foreign message as one short printable line."""
    if isinstance(text, bytes):
        text = text[: 4 * limit].decode("utf-8", "replace")
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= limit else f"{line[:limit]}..."
