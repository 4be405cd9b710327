"""One HTTP probe: whether the backend answers a GET with an expected status.

Owns the request and the words for bad answers. Refuses redirects, cookies, proxies, kept
connections and decompression: each probe is one request on one connection, as from a new client.
"""

from __future__ import annotations

import http
from collections.abc import Iterable
from typing import Final
from urllib.parse import quote

import aiohttp
from yarl import URL

from lb_xdp.core.health import ProbeResult
from lb_xdp.core.model import Address, HealthCheck, StatusRange, format_endpoint
from lb_xdp.probes.attempt import Clock, ProbeFailedError, attempt, describe
from lb_xdp.probes.dial import socket_factory

BODY_LIMIT_BYTES: Final = 64 * 1024
"""How much of the answer's body is read: enough for every honest check page to end well."""

_WORDS_LIMIT: Final = 60


def make_session() -> aiohttp.ClientSession:
    """Return the session that all probes of a prober share; the caller closes it."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(force_close=True, limit=0, socket_factory=socket_factory),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(),
        auto_decompress=False,
    )


async def probe_http(
    check: HealthCheck,
    address: Address,
    port: int,
    clock: Clock,
    session: aiohttp.ClientSession,
) -> ProbeResult:
    """Send GET ``check.path`` and judge the status. Raises nothing for reasons of the network."""

    async def exchange() -> str:
        try:
            return await _get(check, address, port, session)
        except aiohttp.ClientResponseError as error:
            raise ProbeFailedError(f"not HTTP: {_first_words(error.message)}") from error
        except aiohttp.ServerDisconnectedError as error:
            raise ProbeFailedError("connection closed without an answer") from error
        except aiohttp.ClientPayloadError as error:
            raise ProbeFailedError("connection closed in the middle of the answer") from error
        except aiohttp.ClientOSError as error:
            raise ProbeFailedError(describe(error)) from error
        except aiohttp.ClientError as error:
            raise ProbeFailedError(f"not HTTP: {_first_words(str(error))}") from error

    return await attempt(check, clock, exchange)


async def _get(
    check: HealthCheck, address: Address, port: int, session: aiohttp.ClientSession
) -> str:
    # As written, percent signs included: left to itself, aiohttp would turn %2F in a query into /.
    path = quote(check.path, safe="%/?:@!$&'()*+,;=~")
    place = format_endpoint(address, port)
    url = URL(f"http://{place}{path}", encoded=True)
    headers = {
        "Host": check.http_host or place,
        "User-Agent": "lb-xdp-probe",
        "Connection": "close",
    }
    async with session.get(url, headers=headers, allow_redirects=False) as response:
        status = _name_status(response.status)
        if not any(first <= response.status <= last for first, last in check.expected_status):
            raise ProbeFailedError(f"{status}, expected {_name_ranges(check.expected_status)}")
        await _read_body(response)
    return status


async def _read_body(response: aiohttp.ClientResponse) -> None:
    """Read the body to its end or to the limit, so that the backend can finish what it says."""
    left_bytes = BODY_LIMIT_BYTES
    async for chunk in response.content.iter_any():
        left_bytes -= len(chunk)
        if left_bytes <= 0:
            response.close()
            return


def _name_status(status: int) -> str:
    # The standard phrase, not the backend's: it ends up in logs and tables.
    try:
        return f"{status} {http.HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)


def _name_ranges(ranges: Iterable[StatusRange]) -> str:
    return ", ".join(f"{r.first}-{r.last}" if r.first != r.last else f"{r.first}" for r in ranges)


def _first_words(text: str) -> str:
    """Return a foreign message as one short printable line."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= _WORDS_LIMIT else f"{line[:_WORDS_LIMIT]}..."
