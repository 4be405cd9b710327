"""Which daemon a command is for, as the options before the verb say.

This module owns these options only, so that ``--help`` need not import the API client;
``connect.py`` finds the daemon.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Target:
    """At most one of ``name``, ``socket`` and ``url`` is set; the sockets are in ``run_directory``.

    ``token_file`` and ``authority`` go with ``url``.
    """

    name: str | None = None
    socket: Path | None = None
    run_directory: Path = Path("/run/lb-xdp")
    url: str | None = None
    token_file: Path | None = None
    authority: Path | None = None


def target_of(
    given: Target,
    *,
    name: str | None,
    socket: Path | None,
    url: str | None,
    token_file: Path | None,
    ca: Path | None,
) -> Target:
    """Return what the options before the verb mean; what is typed goes before the environment."""
    return replace(
        given,
        name=name,
        socket=socket,
        url=None if name or socket else url,
        token_file=token_file,
        authority=ca,
    )
