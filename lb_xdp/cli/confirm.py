"""``lb-xdp confirm``: keep a change that waits for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from lb_xdp.cli.connect import connect

if TYPE_CHECKING:
    from lb_xdp.cli.target import Target


@click.command("confirm")
@click.pass_obj
def command(target: Target) -> None:
    """Keep what a reload with --confirm has changed.

    \b
    Example:
      sudo lb-xdp reload --confirm 60s && sudo lb-xdp confirm
    """
    click.echo(connect(target).confirm())
