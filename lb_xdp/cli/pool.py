"""``lb-xdp pool``: the pools in use, which services share them, and how their backends do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from lb_xdp.cli import suggest
from lb_xdp.cli.connect import connect
from lb_xdp.cli.pool_tables import details, summary

if TYPE_CHECKING:
    from lb_xdp.cli.target import Target

PIPED_COLUMNS = 120

_output = click.option(
    "-o",
    "--output",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="json: a list of pools, their backends included.",
)


@click.group("pool")
def command() -> None:
    """Show pools and who shares them.

    \b
    Example:
      sudo lb-xdp pool list
      sudo lb-xdp pool show web
    """


@command.command("list")
@_output
@click.pass_obj
def list_pools(target: Target, output: str) -> None:
    """List the pools in use, a line each.

    \b
    Example:
      sudo lb-xdp pool list
    """
    _print(connect(target).pools(), output, summary)


@command.command("show")
@click.argument("names", metavar="[NAME]...", nargs=-1, shell_complete=suggest.pools)
@_output
@click.pass_obj
def show(target: Target, names: tuple[str, ...], output: str) -> None:
    """Show pools with their backends: all of them, or those named.

    \b
    Example:
      sudo lb-xdp pool show web
    """
    known = {pool["name"]: pool for pool in connect(target).pools()}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise click.UsageError(
            f"No pool is named {', '.join(unknown)}. There are: {', '.join(known)}."
        )
    _print([known[name] for name in names or known], output, details)


def _print(
    pools: list[dict[str, Any]],
    output: str,
    render: Callable[[list[dict[str, Any]], int], str],
) -> None:
    if output == "json":
        click.echo(json.dumps(pools, indent=2, ensure_ascii=False))
    else:
        columns = shutil.get_terminal_size((PIPED_COLUMNS, 24)).columns
        click.echo(render(pools, columns), nl=False)
