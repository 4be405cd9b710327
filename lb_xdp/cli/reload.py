"""``lb-xdp reload``: have the daemon go to another configuration, or load its own file again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from lb_xdp.cli.arguments import duration_s
from lb_xdp.cli.connect import connect
from lb_xdp.cli.plan import EXIT_REFUSED, file_argument, max_moved_option, shown, text_of

if TYPE_CHECKING:
    from lb_xdp.cli.target import Target


@click.command("reload")
@file_argument
@max_moved_option
@click.option(
    "--confirm", metavar="TIME", type=duration_s,
    help="Undo it after that time, 60s or 5min, unless `lb-xdp confirm` is said.",
)  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Show what it would do: lb-xdp plan.")
@click.pass_obj
def command(
    target: Target,
    file: Path | None,
    *,
    max_moved: float | None,
    confirm: float | None,
    dry_run: bool,
) -> None:
    """Go to another configuration, all of it or nothing.

    That is the one in FILE, or what the daemon's own file says by now. When it has mistakes they
    are listed, the exit code is 3, and the former configuration stays in force.

    A FILE that is not the daemon's own stays in force over restarts, until the daemon's file is
    changed or `lb-xdp reload` loads that. With --confirm the former configuration comes back by
    itself, also if the daemon is killed or restarted meanwhile; while a change waits to be
    confirmed no other is taken.

    \b
    Example:
      sudo lb-xdp reload
      sudo lb-xdp reload --max-moved 5% --confirm 60s && sudo lb-xdp confirm
    """
    if dry_run:
        if not shown(target, file, max_moved, "table"):
            click.get_current_context().exit(EXIT_REFUSED)
        return
    wish = {**text_of(file), "max_moved": max_moved, "confirm": confirm}
    done = connect(target).reload(**{key: each for key, each in wish.items() if each is not None})
    click.echo(done["summary"])
    if done["confirm_by_timestamp_s"] is not None:
        click.echo("keep it: lb-xdp confirm; undo it at once: lb-xdp rollback", err=True)
