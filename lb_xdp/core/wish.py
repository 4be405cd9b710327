"""What is asked of a running gateway, and what came of it: values between API and daemon."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256

from lb_xdp.core.model import Config, Service, ServiceKey
from lb_xdp.core.override import Overrides
from lb_xdp.errors import StaleError

Match = frozenset[str] | None
"""The revisions that whoever asks has seen; None: any will do."""


@dataclass(frozen=True, slots=True)
class ReloadWish:
    """Go to another configuration: ``text``, or the daemon's own file where that is None.

    ``source`` names the text in messages. ``moved_share_max`` refuses when more of a service's
    slots would move, 0 to 1. With ``confirm_s`` the former configuration comes back after that
    time, unless somebody confirms.
    """

    text: str | None = None
    source: str = ""
    moved_share_max: float | None = None
    confirm_s: float | None = None
    author: str = ""
    match: Match = None


@dataclass(frozen=True, slots=True)
class ServiceMoved:
    """How many slots of a service have moved; ``share`` is of all, 0 to 1."""

    name: str
    moved_slots: int
    share: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a reload did. ``confirm_by_timestamp_s`` is when it is undone unless confirmed."""

    summary: str
    revision: str
    moved_slots: int
    services: tuple[ServiceMoved, ...]
    confirm_by_timestamp_s: float | None = None


def service_digest(service: Service) -> bytes:
    """Return 32 bytes that are the same for equal services. Takes 20 us for ten backends."""
    return sha256(repr(service).encode()).digest()


def digest(config: Config, services: Iterable[bytes] | None = None) -> str:
    """Return what a configuration is called: the same for the same wishes, wherever they stood.

    ``services`` are the digests of its services, in order, where they are known.
    """
    whole = sha256(repr(config.gateway).encode())
    for each in map(service_digest, config.services) if services is None else services:
        whole.update(each)
    return whole.hexdigest()[:16]


def revision(config_digest: str, overrides: Overrides) -> str:
    """Return what a desired state is called: a configuration with what was asked for beside it."""
    text = "\n".join(map(repr, overrides))
    return sha256(f"{config_digest}\n{text}".encode()).hexdigest()[:16]


def refuse_stale(match: Match, present: str) -> None:
    """Raise StaleError if the desired state is not one that was seen."""
    if match is not None and present not in match:
        raise StaleError(
            f"the gateway has been changed meanwhile: it is at revision {present}; nothing was "
            "changed: look again, then decide again"
        )


def moved_by_name(
    config: Config, moved: Mapping[ServiceKey, int], slots: int
) -> tuple[ServiceMoved, ...]:
    """Return the services of which slots have moved, in the file's order."""
    return tuple(
        ServiceMoved(service.name, count, count / slots)
        for service in config.services
        if (count := moved.get(service.key, 0))
    )
