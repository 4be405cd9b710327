"""What must survive the daemon, besides what the kernel holds: ``<state directory>/state.json``.

Owns the file: its format, its versions, and what is said when it cannot be written. That it is
never half a file is ``disk``'s, what its contents mean ``core.override``'s and
``core.lingering``'s. A change is written before it takes effect, so a disk that is full refuses it,
and nothing changes. A file that cannot be read is moved aside with a loud word: the gateway starts
without it, which for operators is better than not to start.

Times are Unix time.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from lb_xdp import disk
from lb_xdp.core.desired import BackendId
from lb_xdp.core.lingering import Farewell
from lb_xdp.core.model import BackendKey, Protocol, ServiceKey
from lb_xdp.core.override import MAX_WEIGHT, Kind, Override, Overrides, Subject
from lb_xdp.core.snapshot import Admin
from lb_xdp.errors import StoreError

_log = logging.getLogger(__name__)

VERSION = 1


@dataclass(frozen=True, slots=True)
class Kept:
    """All that is kept."""

    overrides: Overrides = field(default_factory=Overrides)
    lingering: tuple[Farewell, ...] = ()


class Store:
    """The file in one directory. One process writes it: the one that holds the gateway's lock."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._path = directory / "state.json"
        self.notice = ""

    def load(self) -> Kept:
        """Return what was kept; nothing where there is no file, or none that can be understood.

        ``notice`` says in a sentence what was lost, and is empty where nothing was.
        """
        try:
            return _decode(json.loads(self._path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return Kept()
        except OSError as error:
            self._lose(f"{self._path} cannot be read ({error.strerror})")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            aside = self._path.with_suffix(".bad")
            with suppress(OSError):  # a read-only disk; the next start says so again
                self._path.replace(aside)
            self._lose(f"{self._path} cannot be understood ({error!r}), moved to {aside.name}")
        return Kept()

    def _lose(self, what: str) -> None:
        self.notice = (
            f"{what}: overrides made at run time are lost, set them again; removed backends drain "
            "anew"
        )
        _log.error("%s", self.notice)

    def save(self, kept: Kept) -> None:
        """Replace the file as a whole, and return once it is on the disk. Raises StoreError."""
        replace_file(self._path, json.dumps(_encode(kept), indent=1))


def replace_file(path: Path, text: str) -> None:
    """Replace a file as a whole, and return once it is on the disk. Raises StoreError."""
    try:
        disk.replace(path, text, lasting=True)
    except OSError as error:
        raise StoreError(
            f"{path} cannot be written ({error.strerror}): nothing was changed. "
            "Make room there, then ask again"
        ) from error


def remove_file(path: Path) -> None:
    """Remove a file, and return once that is on the disk. Raises StoreError."""
    try:
        disk.remove(path)
    except OSError as error:
        raise StoreError(f"{path} cannot be removed ({error.strerror})") from error


def _encode(kept: Kept) -> dict[str, Any]:
    return {
        "version": VERSION,
        "overrides": [_encode_override(override) for override in kept.overrides],
        "lingering": [_encode_farewell(one) for one in kept.lingering],
    }


def _decode(document: Mapping[str, Any]) -> Kept:
    """Return what the document says. Raises ValueError, KeyError, TypeError, AttributeError."""
    if document["version"] != VERSION:
        raise ValueError(f"format {document['version']}, this program knows {VERSION}")
    overrides = [_decode_override(entry) for entry in document["overrides"]]
    lingering = tuple(_decode_farewell(entry) for entry in document["lingering"])
    return Kept(Overrides().having(*overrides), lingering)


def _encode_override(override: Override) -> dict[str, Any]:
    return {
        "service": override.subject.service,
        "backend": override.subject.backend,
        "kind": override.subject.kind.value,
        "value": override.value,
        "author": override.author,
        "reason": override.reason,
        "at_timestamp_s": override.at_timestamp_s,
        "expires_timestamp_s": override.expires_timestamp_s,
    }


def _decode_override(entry: Mapping[str, Any]) -> Override:
    subject = Subject(str(entry["service"]), str(entry["backend"]), Kind(entry["kind"]))
    value = str(entry["value"])
    if subject.kind is Kind.ADMIN:
        Admin(value)
    elif not 0 <= int(value) <= MAX_WEIGHT:
        raise ValueError(f"weight {value} of {subject}")
    expires_s = entry["expires_timestamp_s"]
    return Override(
        subject,
        value,
        str(entry["author"]),
        str(entry["reason"]),
        float(entry["at_timestamp_s"]),
        None if expires_s is None else float(expires_s),
    )


def _encode_farewell(one: Farewell) -> dict[str, Any]:
    service, backend = one.identity
    return {
        "vip": str(service.vip),
        "vip_port": service.port,
        "protocol": service.protocol.value,
        "address": str(backend.address),
        "port": backend.port,
        "name": one.name,
        "pool": one.pool,
        "forget_timestamp_s": one.forget_timestamp_s,
    }


def _decode_farewell(entry: Mapping[str, Any]) -> Farewell:
    service = ServiceKey(
        ip_address(entry["vip"]), int(entry["vip_port"]), Protocol(entry["protocol"])
    )
    backend = BackendKey(ip_address(entry["address"]), int(entry["port"]))
    return Farewell(
        BackendId(service, backend),
        str(entry["name"]),
        str(entry["pool"]),
        float(entry["forget_timestamp_s"]),
    )
