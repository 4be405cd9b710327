"""What is said about a name that nothing has: the one that was probably meant, and those there are.

Owns the words only. A name may be anything that somebody sent, so it is shortened and quoted where
a terminal could not show it.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from difflib import get_close_matches
from itertools import islice

from lb_xdp.errors import UnknownNameError

_SHOWN = 8
_COMPARED = 1_000  # comparing takes 10 us a name
_LONGEST = 80


def require_service(name: str, known: Collection[str]) -> None:
    """Raise UnknownNameError unless there is such a service."""
    if name not in known:
        raise unknown("there is no service", name, "services", known)


def require_backend(service: str, name: str, known: Collection[str]) -> None:
    """Raise UnknownNameError unless ``service`` has such a backend; ``known`` are its own."""
    if name not in known:
        raise unknown(f"service {service} has no backend", name, "backends", known)


def unknown(sentence: str, name: str, what: str, known: Collection[str]) -> UnknownNameError:
    """Return ``there is no service wbe; did you mean web? services: web, dns``."""
    near = get_close_matches(name[:_LONGEST], list(islice(known, _COMPARED)), n=1)
    meant = f" did you mean {near[0]}?" if near else ""
    return UnknownNameError(f"{sentence} {_shown(name)};{meant} {what}: {some_of(known)}")


def some_of(names: Collection[str]) -> str:
    """Return some names, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{', '.join(islice(names, _SHOWN)) or 'none'}{more}"


def _shown(name: str) -> str:
    short = name if len(name) <= _LONGEST else f"{name[:_LONGEST]}..."
    return short if short.isprintable() else json.dumps(short)
