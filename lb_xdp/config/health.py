"""What the keys of a health check ask of each other, and of the host that they are read on.

Each key applies to some types; given with another it is an error, since somebody believes that it
has an effect. Files and commands that a probe needs must be there. It works on a draft, like
``check``, and refuses to judge a single value.
"""

from __future__ import annotations

import os
import ssl
import sys
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import dns.exception
import dns.rdata
import dns.rdataclass

from lb_xdp.config.draft import Draft, DraftHealth, DraftService
from lb_xdp.config.tree import Finding
from lb_xdp.config.wording import quote
from lb_xdp.core.model import CheckKind, Protocol, Via

_HTTP: Final = (CheckKind.HTTP, CheckKind.HTTPS)
_TLS: Final = (CheckKind.HTTPS, CheckKind.GRPC)
_DNS: Final = (CheckKind.DNS,)
_WITH_PORT: Final = tuple(kind for kind in CheckKind if kind.needs_port)

KINDS_OF: Final[Mapping[str, tuple[CheckKind, ...]]] = {
    "port": (*_WITH_PORT, CheckKind.EXEC),
    "via": _WITH_PORT,
    "send": (CheckKind.TCP, CheckKind.UDP, CheckKind.AGENT),
    "expect": (CheckKind.TCP, CheckKind.UDP),
    "method": _HTTP,
    "path": _HTTP,
    "host_header": _HTTP,
    "headers": _HTTP,
    "expected_status": _HTTP,
    "expected_body": _HTTP,
    "reuse": _HTTP,
    "tls": (CheckKind.GRPC,),
    "server_name": _TLS,
    "ca_file": _TLS,
    "insecure": _TLS,
    "certificate": _TLS,
    "private_key": _TLS,
    "grpc_service": (CheckKind.GRPC,),
    "query_name": _DNS,
    "query_type": _DNS,
    "expected_answer": _DNS,
    "command": (CheckKind.EXEC,),
}
"""The types that a key has an effect with; keys that are not here, with all but none."""

_NEEDED: Final = {
    CheckKind.UDP: ("send", "a datagram that the server answers"),
    CheckKind.DNS: ("query_name", "the name to ask for"),
    CheckKind.EXEC: ("command", "the program to run, and its arguments"),
}
_COMMON: Final = ("port", "via")
_FILES: Final = ("ca_file", "certificate", "private_key")
_GRPC_LIBRARY: Final = "h2"


def find_unhealthy(draft: Draft) -> Iterator[Finding]:
    """Yield what is wrong about health checks."""
    for pool in draft.all_pools:
        if pool.health is not None:
            yield from _times(pool.health)
            yield from _elsewhere(pool.health)
            yield from _idle_keys(pool.health)
            yield from _missing(pool.health)
            yield from _futile(pool.health)
            yield from _answer(pool.health)
            yield from _files(pool.health)
    for service in draft.services:
        yield from _unprobed_udp(service)


def _times(health: DraftHealth) -> Iterator[Finding]:
    interval_s, timeout_s, fast_s = health.interval_s, health.timeout_s, health.fast_interval_s
    if timeout_s is not None and interval_s is not None and timeout_s > interval_s:
        message = (
            f"{timeout_s:g}s is longer than the interval ({interval_s:g}s): "
            "a probe must end before the next one starts"
        )
        yield Finding((*health.at, "timeout"), message)
    if fast_s is not None and interval_s is not None and fast_s > interval_s:
        message = f"{fast_s:g}s is longer than the interval ({interval_s:g}s); give a shorter one"
        yield Finding((*health.at, "fast_interval"), message)


def _elsewhere(health: DraftHealth) -> Iterator[Finding]:
    if health.via is Via.DATAPATH and "host" in health.given:
        message = (
            "does not go with `via: datapath`, which asks the VIP; leave it out, or use "
            "`via: direct`"
        )
        yield Finding((*health.at, "host"), message, on_key=True)


def _idle_keys(health: DraftHealth) -> Iterator[Finding]:
    """Find keys that have no effect with this type."""
    for key in health.given:
        remedy = None
        if health.kind is CheckKind.NONE and key != "type":
            remedy = "choose another type"
        elif health.kind is not None and health.kind not in KINDS_OF.get(key, CheckKind):
            kinds = (f"`type: {kind}`" for kind in KINDS_OF[key])
            remedy = f"use {' or '.join(kinds)}" if key not in _COMMON else "choose another type"
        if remedy:
            message = f"has no effect with `type: {health.kind}`; leave it out, or {remedy}"
            yield Finding((*health.at, key), message, on_key=True)


def _missing(health: DraftHealth) -> Iterator[Finding]:
    """Find what a type cannot do without."""
    key, what = _NEEDED.get(health.kind or CheckKind.NONE, ("", ""))
    if key and (key not in health.given or health.question[key] == ()):
        yield Finding(health.at, f"`type: {health.kind}` needs `{key}`: {what}")
    if health.kind is CheckKind.GRPC and find_spec(_GRPC_LIBRARY) is None:
        message = (
            f"`grpc` needs the library {_GRPC_LIBRARY}, which is not installed: install the extra "
            f"`lb-xdp[grpc]`, or run `{sys.executable} -m pip install {_GRPC_LIBRARY}`"
        )
        yield Finding((*health.at, "type"), message)


def _futile(health: DraftHealth) -> Iterator[Finding]:
    """Find keys that another key leaves no use for, or that lack another."""
    asked = health.question

    def given(key: str, *kinds: CheckKind) -> bool:
        return key in health.given and health.kind in kinds

    if given("send", CheckKind.TCP) and "expect" not in health.given:
        message = "without `expect` the answer would not matter; give both, or leave both out"
        yield Finding((*health.at, "send"), message, on_key=True)
    if given("expected_body", *_HTTP) and asked.get("method") == "HEAD":
        message = "the answer to HEAD has no body; use another `method`"
        yield Finding((*health.at, "expected_body"), message, on_key=True)
    if given("ca_file", *_TLS) and asked.get("insecure"):
        message = "has no effect with `insecure: true`; leave one of them out"
        yield Finding((*health.at, "ca_file"), message, on_key=True)
    if given("private_key", *_TLS) and "certificate" not in health.given:
        message = "has no effect without `certificate`; give both"
        yield Finding((*health.at, "private_key"), message, on_key=True)
    if health.kind is CheckKind.GRPC and asked.get("tls", False) is False:
        for key in health.given:
            if KINDS_OF.get(key) is _TLS:
                message = "has no effect without `tls: true`; give that, or leave this out"
                yield Finding((*health.at, key), message, on_key=True)


def _answer(health: DraftHealth) -> Iterator[Finding]:
    """Find an expected record that is none of the type asked for."""
    kind = health.question.get("query_type", "A")
    expected = health.question.get("expected_answer")
    if health.kind is not CheckKind.DNS or kind is None or expected is None:
        return
    try:
        dns.rdata.from_text(dns.rdataclass.IN, kind, expected)
    except (dns.exception.DNSException, ValueError) as error:
        message = f"{quote(expected)} is no {kind} record as zone files write it: {error}"
        yield Finding((*health.at, "expected_answer"), message)


def _files(health: DraftHealth) -> Iterator[Finding]:
    """Find files that cannot be used."""
    command = health.question.get("command")
    if health.kind is CheckKind.EXEC and command and (problem := _command_problem(command[0])):
        yield Finding((*health.at, "command", 0), problem)
    if health.kind in _TLS:
        paths = {key: health.question.get(key) for key in _FILES}
        problems = {key: _reading_problem(path) for key, path in paths.items() if path}
        yield from (Finding((*health.at, key), found) for key, found in problems.items() if found)
        if not any(problems.values()):
            yield from _certificates(health, **paths)


def _certificates(
    health: DraftHealth, ca_file: str | None, certificate: str | None, private_key: str | None
) -> Iterator[Finding]:
    """Find files that can be read, but hold something else."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if ca_file is not None:
        try:
            context.load_verify_locations(ca_file)
        except ssl.SSLError:
            message = f"{quote(ca_file)} holds no certificate in PEM form"
            yield Finding((*health.at, "ca_file"), message)
    if certificate is not None:
        try:
            context.load_cert_chain(certificate, private_key, password="")
        except (ssl.SSLError, ValueError):
            message = (
                f"{quote(certificate)} and its key cannot be used: both in PEM form, "
                "belonging together, the key without a passphrase"
            )
            yield Finding((*health.at, "certificate"), message)


def _command_problem(path: str) -> str | None:
    if not Path(path).is_file():
        return f"there is no file {quote(path)}"
    return None if os.access(path, os.X_OK) else f"{quote(path)} is not executable: chmod +x"


def _reading_problem(path: str) -> str | None:
    try:
        with Path(path).open("rb") as file:
            file.read(1)
    except OSError as error:
        return f"{quote(path)} cannot be read: {(error.strerror or 'unknown error').lower()}"
    return None


def _unprobed_udp(service: DraftService) -> Iterator[Finding]:
    """Find udp services whose backends would be probed over tcp only because nobody said how."""
    if service.protocol is Protocol.UDP and service.pool and not service.pool.health_given:
        message = (
            "a udp service needs `health:` said explicitly, since the default is a tcp connection "
            "to the same port; `type: udp`, `dns` or `icmp`, `health: none`, or a `port:` where "
            "the server answers over tcp"
        )
        yield Finding(service.pool.at, message)
