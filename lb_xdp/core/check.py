"""What the single kinds of probes ask, and which answers are good ones.

Owns the vocabulary of one question: payload, HTTP request, TLS, DNS query. When, how often and
where it is asked is ``HealthCheck``'s, in ``lb_xdp.core.model``; how, is ``lb_xdp.probes``'.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class StatusRange(NamedTuple):
    """HTTP status codes from ``first`` to ``last``, both included."""

    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Payload:
    """What tcp and udp probes send, and what must be contained in the answer; None for nothing."""

    send: bytes | None = None
    expect: bytes | None = None


@dataclass(frozen=True, slots=True)
class Tls:
    """How a probe speaks TLS. The files are absolute paths of PEM files.

    ``server_name`` is asked for (SNI) and must be in the server's certificate; None stands for the
    name in the Host header, or the address. ``ca_file`` None: the system's authorities.
    ``insecure``: any certificate will do. ``private_key`` None: the certificate's file holds it.
    """

    server_name: str | None = None
    ca_file: str | None = None
    insecure: bool = False
    certificate: str | None = None
    private_key: str | None = None


@dataclass(frozen=True, slots=True)
class HttpCheck:
    """One request of HTTP/1.1 and its good answers.

    ``host_header`` None stands for the address and port probed. ``expected_body`` is a regular
    expression that is searched in the body's beginning. ``reuse`` keeps the connection.
    """

    method: str = "GET"
    path: str = "/"
    host_header: str | None = None
    headers: tuple[tuple[str, str], ...] = ()
    expected_status: tuple[StatusRange, ...] = (StatusRange(200, 399),)
    expected_body: str | None = None
    reuse: bool = False


@dataclass(frozen=True, slots=True)
class DnsCheck:
    """One query, and the record that must be among the answers; None: any of its type."""

    query_name: str = "."
    query_type: str = "A"
    expected_answer: str | None = None
