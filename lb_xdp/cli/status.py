"""``lb-xdp status``: one screen for people, the whole snapshot in JSON for programs."""

from __future__ import annotations

import gc
import os
import shutil
import sys

import click

from lb_xdp.cli.connect import connect
from lb_xdp.cli.target import Target

PIPED_COLUMNS = 120


@click.command("status")
@click.option(
    "-o",
    "--output",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="json: everything, with exact counters.",
)
@click.pass_obj
def command(target: Target, output: str) -> None:
    """Show datapath, services and backends.

    state is what counts for traffic: up, down, drain, maint or unknown. admin is what was asked
    for, health what probes say. share is the part of new flows that a backend gets.

    \b
    Example:
      sudo lb-xdp status
      sudo lb-xdp status -o json | jq '.services[].backends[] | {name, state, packets}'
    """
    gc.disable()  # what is made here is needed until the end, and looking for cycles takes longer
    client = connect(target)
    if output == "json":
        click.echo(client.status())
        return
    from lb_xdp.cli.status_table import render  # noqa: PLC0415 - json needs no classes

    snapshot = client.snapshot()
    columns = shutil.get_terminal_size((PIPED_COLUMNS, 24)).columns
    click.echo(render(snapshot, columns=columns, colour=_wants_colour()), nl=False)


def _wants_colour() -> bool:
    """Return whether stdout shows colours and the user has not said no (https://no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.getenv("TERM") != "dumb"
