"""``lb-xdp detach``: the only command that stops forwarding."""

from __future__ import annotations

import sys

import click

from lb_xdp.api.client import Client
from lb_xdp.cli.connect import find, several
from lb_xdp.cli.target import Target
from lb_xdp.errors import DaemonUnreachableError


@click.command("detach")
@click.option("--yes", is_flag=True, help="Do not ask, even on a terminal.")
@click.pass_obj
def command(target: Target, *, yes: bool) -> None:
    """Remove program and pins: forwarding stops.

    A running daemon does it and ends. Without one, what it left in the kernel is removed.

    \b
    Example:
      sudo lb-xdp detach --yes
    """
    client = _running(target)
    if client is not None:
        _ask(f"the gateway on {client.place}", yes=yes)
        client.detach()
        click.echo(f"detached: the daemon on {client.place} removed program and pins and ended")
        return
    name = target.name or _pinned_name()
    if name is None:
        click.echo("nothing to detach: no daemon answers and no gateway is pinned")
        return
    _ask(f"gateway {name}", yes=yes)
    _detach_pinned(name)


def _running(target: Target) -> Client | None:
    """Return the daemon to ask, None where nothing answers and the pins can be removed directly."""
    client = find(target)
    if client is None:
        return None
    try:
        client.ping()
    except DaemonUnreachableError as error:
        # Only a daemon that is surely not there may be passed by: behind a closed or a slow socket
        # one goes on and would put everything back. What was given by its path or address has no
        # pins to name.
        gone = isinstance(error.__cause__, FileNotFoundError | ConnectionRefusedError)
        if target.socket or target.url or not gone:
            raise
        return None
    return client


def _pinned_name() -> str | None:
    """Return the name of the only gateway that has pins, None without any."""
    from lb_xdp.daemon import pinned_names  # noqa: PLC0415 - asking a daemon must not import it all

    names = pinned_names()
    if len(names) > 1:
        raise several("gateways are pinned", names)
    return names[0] if names else None


def _detach_pinned(name: str) -> None:
    """Remove what a dead daemon left, and say what that was."""
    from lb_xdp.daemon import detach  # noqa: PLC0415 - asking a daemon must not import it all

    removed = detach(name)
    for item in removed:
        click.echo(f"removed {item}")
    if not removed:
        click.echo(f"nothing to detach: gateway {name} has no program and no pins")


def _ask(what: str, *, yes: bool) -> None:
    """Ask on a terminal; a script has decided already."""
    if not yes and sys.stdin.isatty():
        click.confirm(f"This stops forwarding for {what}. Go on?", abort=True, err=True)
