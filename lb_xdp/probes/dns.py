"""One DNS probe: whether a name server answers a query, and with the record that it should.

dnspython owns the format. The query goes by UDP, from a new port with a new number each time, and
again by TCP where the answer did not fit (RFC 7766, section 5). Recursion is asked for.

Reading an answer costs more than all else about a probe, and most servers give the same one each
time: what is octet by octet the last good one, but for the query's number, is good as that was.
"""

from __future__ import annotations

import secrets
import socket
import struct
from typing import Final

import dns.exception
import dns.flags
import dns.message
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype

from lb_xdp.core.health import Target
from lb_xdp.probes.attempt import Answer, ProbeFailedError, first_words
from lb_xdp.probes.connection import Connection, connect

_LENGTH: Final = struct.Struct("!H")
_NUMBER_BYTES: Final = 2
_KEPT_BYTES: Final = 512  # of an answer, at most: as much as comes by UDP (RFC 1035, 2.3.4)


class DnsExchange:
    """Asks one server for one name."""

    def __init__(self, target: Target) -> None:
        how = target.check.dns
        self._target = target
        self._type = dns.rdatatype.from_text(how.query_type)
        self._query = dns.message.make_query(how.query_name, self._type)
        self._wire = self._query.to_wire()
        self._good: tuple[bytes, Answer] | None = None
        expected = how.expected_answer
        self._expected = None if expected is None else read_record(how.query_type, expected)

    async def ask(self) -> Answer:
        """Ask once, with a number that nobody can guess."""
        self._wire = secrets.token_bytes(_NUMBER_BYTES) + self._wire[_NUMBER_BYTES:]
        wire = await self._by_udp()
        return self._recall(wire) or self._take(wire) or self._judge(await self._by_tcp())

    def close(self) -> None:
        """Nothing is kept."""

    def _recall(self, wire: bytes) -> Answer | None:
        """Return the last good answer if this is it again."""
        if self._good is None or not wire.startswith(self._wire[:_NUMBER_BYTES]):
            return None
        rest, answer = self._good
        return answer if wire[_NUMBER_BYTES:] == rest else None

    def _take(self, wire: bytes) -> Answer | None:
        """Return what an answer says, None if it did not fit; keep it in mind if it is good."""
        message = self._read(wire)
        if message.flags & dns.flags.TC:
            return None
        answer = self._judge(message)
        if len(wire) <= _KEPT_BYTES:
            self._good = wire[_NUMBER_BYTES:], answer
        return answer

    async def _by_udp(self) -> bytes:
        connection = await connect(self._target.address, self._target.port, socket.SOCK_DGRAM)
        try:
            await connection.send(self._wire)
            return await connection.receive()
        finally:
            connection.close()

    async def _by_tcp(self) -> dns.message.Message:
        """Ask again over a stream, where two octets of length go before a message."""
        connection = await connect(self._target.address, self._target.port)
        try:
            await connection.send(_LENGTH.pack(len(self._wire)) + self._wire)
            head = await _receive(connection, _LENGTH.size)
            size = _LENGTH.size + _LENGTH.unpack_from(head)[0]
            return self._read((await _receive(connection, size, head))[_LENGTH.size :])
        finally:
            connection.close()

    def _read(self, wire: bytes) -> dns.message.Message:
        try:
            answer = dns.message.from_wire(wire, ignore_trailing=True)
        except (dns.exception.DNSException, ValueError) as error:
            raise ProbeFailedError(f"not DNS: {first_words(wire) or 'nothing'}") from error
        self._query.id = int.from_bytes(self._wire[:_NUMBER_BYTES], "big")
        if not self._query.is_response(answer):
            raise ProbeFailedError("answered another question")
        return answer

    def _judge(self, answer: dns.message.Message) -> Answer:
        name, kind = self._target.check.dns.query_name, self._target.check.dns.query_type
        if answer.rcode() is not dns.rcode.NOERROR:
            raise ProbeFailedError(f"{dns.rcode.to_text(answer.rcode())} for {name} {kind}")
        records = [r for found in answer.answer if found.rdtype == self._type for r in found]
        if not records:
            raise ProbeFailedError(f"no {kind} record of {name}")
        if self._expected is not None and self._expected not in records:
            said = first_words(", ".join(sorted(record.to_text() for record in records)))
            raise ProbeFailedError(f"answered {said}, expected {self._expected.to_text()}")
        return Answer(f"{len(records)} {kind} record{'s' if len(records) > 1 else ''}")


async def _receive(connection: Connection, size: int, received: bytes = b"") -> bytes:
    """Return at least ``size`` octets, of which some are ``received`` already."""
    while len(received) < size:
        data = await connection.receive()
        if not data:
            raise ProbeFailedError("connection closed in the middle of the answer")
        received += data
    return received


def read_record(kind: str, text: str) -> dns.rdata.Rdata:
    """Return a record as zone files write it. Raises dns.exception.DNSException."""
    origin = dns.name.root
    return dns.rdata.from_text(dns.rdataclass.IN, kind, text, origin=origin, relativize=False)
