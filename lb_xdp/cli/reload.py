"""``lb-xdp reload``: have the daemon load its file again."""

from __future__ import annotations

import click

from lb_xdp.cli.connect import connect
from lb_xdp.cli.target import Target


@click.command("reload")
@click.pass_obj
def command(target: Target) -> None:
    """Have the daemon load its configuration again.

    All of the new configuration takes effect or none: when the file has mistakes they are listed,
    the exit code is 3, and the former configuration stays in force.

    \b
    Example:
      sudo lb-xdp reload
    """
    click.echo(connect(target).reload())
