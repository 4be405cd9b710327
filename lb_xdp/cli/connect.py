"""From the options before the verb to a client of the daemon that they mean.

This module owns the choice between several daemons and what the user is told about it. It refuses
to own the talking, which is the API client's.
"""

from __future__ import annotations

import click

from lb_xdp.api.client import Client, answering, socket_of
from lb_xdp.api.connection import Remote
from lb_xdp.cli.target import Target
from lb_xdp.errors import DaemonUnreachableError


def connect(target: Target) -> Client:
    """Return a client of the daemon that ``target`` means, or of the only one that answers.

    Raises DaemonUnreachableError when none answers, click.UsageError when several do. A named
    daemon is not tried here: its first request tells.
    """
    client = find(target)
    if client is None:
        raise DaemonUnreachableError(
            f"no daemon answers under {target.run_directory}: is it running? "
            "systemctl status 'lb-xdp@*'; start it with: lb-xdp run -c FILE; "
            "where gateway.api.socket is set elsewhere, give --socket PATH"
        )
    return client


def find(target: Target) -> Client | None:
    """Return what ``connect`` does, but None when nothing is named and no daemon answers."""
    if target.url:
        if target.token_file is None:
            raise click.UsageError("--url needs --token-file: over TCP a token says who asks.")
        return Client(Remote(target.url, target.token_file, target.authority))
    if target.socket:
        return Client(target.socket)
    if target.name:
        return Client(socket_of(target.name, target.run_directory))
    found = answering(target.run_directory)
    if len(found) > 1:
        raise several("daemons run", list(found))
    return Client(*found.values()) if found else None


def several(what: str, names: list[str]) -> click.UsageError:
    """Return the usage error that lists the gateways to choose from."""
    return click.UsageError(
        f"Several {what}: {', '.join(names)}. Name one: lb-xdp --name {names[0]} ..."
    )
