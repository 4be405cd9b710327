"""How probes speak TLS: whom they trust and who they are.

Owns the contexts, one for each set of options, and their renewal: a certificate is replaced under
the same name every few weeks, and nobody reloads a load balancer for that. Refuses to judge files:
the configuration did.
"""

from __future__ import annotations

import logging
import os
import re
import ssl
from ipaddress import ip_address
from typing import Final, NamedTuple

from lb_xdp.core.check import Tls
from lb_xdp.core.health import Target
from lb_xdp.probes.attempt import ProbeFailedError, describe
from lb_xdp.probes.connection import Connection, connect, connect_tls

_log = logging.getLogger(__name__)

_LABEL: Final = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_NAME: Final = re.compile(rf"(?=.{{1,253}}$){_LABEL}(?:\.{_LABEL})*", re.ASCII)  # RFC 1035, 2.3

Stamp = tuple[tuple[int, int], ...]
"""Of each file when it was written and which it is."""


class _Held(NamedTuple):
    stamp: Stamp
    context: ssl.SSLContext


class Contexts:
    """The TLS contexts of one prober, read again when a file behind them changes."""

    def __init__(self) -> None:
        self._held: dict[tuple[Tls, tuple[str, ...]], _Held] = {}

    def of(self, tls: Tls, protocols: tuple[str, ...] = ()) -> ssl.SSLContext:
        """Return the context for ``tls``, which offers ``protocols`` by ALPN.

        While new files cannot be read, perhaps because they are half written, the former ones
        hold. Raises ProbeFailedError where there are none.
        """
        held = self._held.get((tls, protocols))
        try:
            stamp = _stamp(tls)
            if held is not None and held.stamp == stamp:
                return held.context
            context = _make(tls, protocols)
        except OSError as error:
            if held is None:
                raise ProbeFailedError(f"the prober's own TLS files: {describe(error)}") from error
            return held.context
        if held is not None:
            _log.info("read the probes' TLS files again: they have changed")
        self._held[tls, protocols] = _Held(stamp, context)
        return context


def _stamp(tls: Tls) -> Stamp:
    files = filter(None, (tls.ca_file, tls.certificate, tls.private_key))
    return tuple((found.st_mtime_ns, found.st_ino) for found in map(os.stat, files))


def _make(tls: Tls, protocols: tuple[str, ...]) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=tls.ca_file)
    if tls.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if tls.certificate is not None:
        context.load_cert_chain(tls.certificate, tls.private_key)
    if protocols:
        context.set_alpn_protocols(list(protocols))
    return context


class Line:
    """How to get a connection to one target, with TLS if its check has it."""

    def __init__(
        self, target: Target, contexts: Contexts, host: str = "", protocols: tuple[str, ...] = ()
    ) -> None:
        tls = target.check.tls
        self._target = target
        self._contexts = contexts
        self._protocols = protocols
        self._tls = tls
        self._name = (tls.server_name if tls else None) or name_in(host) or str(target.address)

    async def open(self) -> Connection:
        """Connect. Raises OSError, of which ssl.SSLError is one, and ProbeFailedError."""
        target = self._target
        if self._tls is None:
            return await connect(target.address, target.port)
        context = self._contexts.of(self._tls, self._protocols)
        return await connect_tls(target.address, target.port, context, self._name)


def name_in(host_header: str) -> str:
    """Return the name in a Host header without its port; nothing where it has none."""
    name = host_header.partition(":")[0]
    if _NAME.fullmatch(name) is None:
        return ""
    try:
        ip_address(name)
    except ValueError:
        return name
    return ""
