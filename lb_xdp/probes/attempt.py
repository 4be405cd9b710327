"""What all probes share: the time limit, the stopwatch, and the words for what went wrong.

Owns the translation of network failures into a ``ProbeResult``. Refuses to know any protocol.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Awaitable, Callable

from lb_xdp.core.health import ProbeResult
from lb_xdp.core.model import HealthCheck

Clock = Callable[[], float]
"""Seconds that never run backwards, as ``time.monotonic``."""


class ProbeFailedError(Exception):
    """The backend answered, and the answer is no; the message is the result's detail."""


async def attempt(
    check: HealthCheck, clock: Clock, exchange: Callable[[], Awaitable[str]]
) -> ProbeResult:
    """Run ``exchange`` for at most ``check.timeout_s`` and say how it went.

    ``exchange`` returns the detail of a success and raises ``ProbeFailedError`` or ``OSError``
    otherwise; neither gets out of here. Cancellation does.
    """
    started_at_s = clock()
    try:
        async with asyncio.timeout(check.timeout_s):
            detail = await exchange()
        ok = True
    except TimeoutError:
        ok, detail = False, f"timed out after {check.timeout_s:g} s"
    except OSError as error:
        ok, detail = False, describe(error)
    except ProbeFailedError as error:
        ok, detail = False, str(error)
    ended_at_s = clock()
    return ProbeResult(ok, detail, ended_at_s - started_at_s, ended_at_s)


def describe(error: OSError) -> str:
    """Return the system's words for an error, without numbers and addresses: ``no route to host``.

    Our own shortages are named as such: they must not read as if the backend were at fault.
    """
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return "the prober has no file descriptors left"
    if error.errno == errno.EADDRNOTAVAIL:
        return "the prober has no local ports left"
    return os.strerror(error.errno).lower() if error.errno else "connection failed"
