"""One HTTP probe: whether the backend answers a request with an expected status and body.

Owns the request and the words for bad answers; ``httptools`` owns the grammar. Refuses redirects,
cookies, proxies and decompression: each probe is one request as from a new client, on a connection
of its own unless the check says ``reuse``.
"""

from __future__ import annotations

import http
import re
from collections.abc import Iterable
from typing import Final
from urllib.parse import quote

import httptools

from lb_xdp.core.check import HttpCheck, StatusRange
from lb_xdp.core.endpoint import format_endpoint
from lb_xdp.core.health import Target
from lb_xdp.probes.attempt import Answer, ProbeFailedError, first_words
from lb_xdp.probes.connection import Connection
from lb_xdp.probes.tls import Contexts, Line

BODY_LIMIT_BYTES: Final = 64 * 1024
"""How much of the answer's body is read: enough for every honest check page to end well."""

_HEAD_LIMIT_BYTES: Final = 64 * 1024
_FIRST_FINAL_STATUS: Final = 200
_SWITCHING_PROTOCOLS: Final = 101


class HttpExchange:
    """Asks one target for one page."""

    def __init__(self, target: Target, contexts: Contexts) -> None:
        self._how = target.check.http
        host = self._how.host_header or format_endpoint(target.address, target.port)
        self._line = Line(target, contexts, self._how.host_header or "")
        self._request = _request(self._how, host)
        self._kept: Connection | None = None

    async def ask(self) -> Answer:
        """Ask once. A kept connection that the server has closed meanwhile counts for nothing."""
        kept, self._kept = self._kept, None
        if kept is not None:
            try:
                return await self._over(kept)
            except (_ClosedEarlyError, ConnectionError):
                pass
        return await self._over(await self._line.open())

    def close(self) -> None:
        """Close the connection that is kept, if one is."""
        if self._kept is not None:
            self._kept.close()

    async def _over(self, connection: Connection) -> Answer:
        """Ask over ``connection``; it is kept or closed afterwards."""
        reply = _Reply(self._how)
        try:
            await connection.send(self._request)
            await reply.read(connection)
            if self._how.reuse and reply.keeps_open:
                self._kept = connection
        finally:
            if self._kept is not connection:
                connection.close()
        return Answer(_judge(reply, self._how))


def _request(how: HttpCheck, host: str) -> bytes:
    # As written, percent signs included: %2F in a query is not /.
    path = quote(how.path, safe="%/?:@!$&'()*+,;=~")
    headers = {
        "host": ("Host", host),
        "user-agent": ("User-Agent", "lb-xdp-probe"),
        "accept": ("Accept", "*/*"),
        "connection": ("Connection", "keep-alive" if how.reuse else "close"),
    }
    if how.method not in {"GET", "HEAD", "OPTIONS", "DELETE", "TRACE"}:
        headers["content-length"] = ("Content-Length", "0")
    headers |= {name.lower(): (name, value) for name, value in how.headers}
    lines = [f"{how.method} {path} HTTP/1.1", *(f"{n}: {v}" for n, v in headers.values()), "", ""]
    return "\r\n".join(lines).encode()


class _ClosedEarlyError(ProbeFailedError):
    """The connection ended before the first octet of an answer."""


class _Reply:
    """One answer, fed octet by octet; httptools calls the ``on_`` methods."""

    def __init__(self, how: HttpCheck) -> None:
        self.status = 0
        self.body = bytearray()
        self.keeps_open = False
        self._parser = httptools.HttpResponseParser(self)
        self._bodiless = how.method == "HEAD"
        self._wanted = how
        self._head_bytes = 0
        self._begun = self._sized = self._ended = False

    async def read(self, connection: Connection) -> None:
        """Read until the answer is complete, or enough of it is known."""
        while not self._enough:
            data = await connection.receive()
            if not data:
                self._end()
                return
            self._begun = True
            self._feed(data)

    @property
    def _enough(self) -> bool:
        unwelcome = self.status and not _expected(self.status, self._wanted)
        return self._ended or bool(unwelcome) or len(self.body) >= BODY_LIMIT_BYTES

    def _feed(self, data: bytes) -> None:
        if not self.status:
            self._head_bytes += len(data)
            if self._head_bytes > _HEAD_LIMIT_BYTES:
                raise ProbeFailedError("not HTTP: headers without end")
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self.keeps_open = False
            if not self._ended:
                raise ProbeFailedError(f"not HTTP: {first_words(str(error))}") from error

    def _end(self) -> None:
        """Judge the end of the connection: it is the end of an answer without a length."""
        if not self._begun:
            raise _ClosedEarlyError("connection closed without an answer")
        if not self.status or self._sized:
            raise ProbeFailedError("connection closed in the middle of the answer")

    def on_header(self, name: bytes, _value: bytes) -> None:
        """Note whether the body says where it ends."""
        self._sized |= name.lower() in (b"content-length", b"transfer-encoding")

    def on_headers_complete(self) -> None:
        """Take the status, unless it is an interim one that another will follow."""
        status = self._parser.get_status_code()
        if status >= _FIRST_FINAL_STATUS or status == _SWITCHING_PROTOCOLS:
            self.status = status
            self._ended = self._bodiless or status == _SWITCHING_PROTOCOLS

    def on_body(self, body: bytes) -> None:
        """Take a part of the body."""
        self.body += body

    def on_message_complete(self) -> None:
        """Note the end of the answer."""
        if self.status:
            self._ended = True
            self.keeps_open = self._parser.should_keep_alive()


def _judge(reply: _Reply, how: HttpCheck) -> str:
    status = _name_status(reply.status)
    if not _expected(reply.status, how):
        raise ProbeFailedError(f"{status}, expected {_name_ranges(how.expected_status)}")
    if how.expected_body is not None:
        # Compiled once: re keeps it.
        text = reply.body.decode("utf-8", "replace")
        if re.search(how.expected_body, text) is None:
            found = first_words(text) or "nothing"
            raise ProbeFailedError(f"{status}, but the body is not as expected: {found}")
    return status


def _expected(status: int, how: HttpCheck) -> bool:
    return any(first <= status <= last for first, last in how.expected_status)


def _name_status(status: int) -> str:
    # The standard phrase, not the backend's: it ends up in logs and tables.
    try:
        return f"{status} {http.HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)


def _name_ranges(ranges: Iterable[StatusRange]) -> str:
    return ", ".join(f"{r.first}-{r.last}" if r.first != r.last else f"{r.first}" for r in ranges)
