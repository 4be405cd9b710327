"""What several commands take: a backend of a service, and a time.

It refuses to know which services and backends there are: the daemon says that.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import click

from lb_xdp.core.durations import parse_duration_s


class BackendPath(NamedTuple):
    """Names of a service and of a backend in it. Neither can have a slash."""

    service: str
    backend: str

    def __str__(self) -> str:
        """Return ``web/web1``."""
        return f"{self.service}/{self.backend}"


def backend_path(text: str) -> BackendPath:
    """Return the names in ``web/web1``, for an argument's type. Raises click.BadParameter."""
    service, _, backend = text.partition("/")
    if not (service and backend) or "/" in backend:
        raise click.BadParameter(f"{text!r} is no SERVICE/BACKEND, such as web/web1.")
    return BackendPath(service, backend)


def share(text: str) -> float:
    """Return 0.05 of ``5%`` or ``0.05``, for an option's type. Raises click.BadParameter."""
    number = text.removesuffix("%")
    try:
        found = float(number) / (100 if number != text else 1)
    except ValueError:
        found = math.nan
    if not 0 <= found <= 1:
        raise click.BadParameter(f"{text!r} is no share, such as 5% or 0.05.")
    return found


def duration_s(text: str) -> float:
    """Return the seconds of ``30min``, for an option's type. Raises click.BadParameter."""
    seconds = parse_duration_s(text)
    if not seconds:
        raise click.BadParameter(f"{text!r} is no time, such as 90s, 30min or 1h.")
    return seconds
