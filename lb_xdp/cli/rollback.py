"""``lb-xdp rollback``: undo a change that waits to be confirmed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from lb_xdp.cli.connect import connect

if TYPE_CHECKING:
    from lb_xdp.cli.target import Target


@click.command("rollback")
@click.pass_obj
def command(target: Target) -> None:
    """Undo what a reload with --confirm has changed.

    At once: the configuration before it is in force again. It stays so over restarts, whatever the
    file says by now; `lb-xdp reload` loads the file.

    \b
    Example:
      sudo lb-xdp rollback
    """
    click.echo(connect(target).roll_back())
