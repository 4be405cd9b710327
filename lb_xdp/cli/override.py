"""``lb-xdp override``: everything that holds beside the file, and its end."""

from __future__ import annotations

import json
import shutil
import time
from typing import TYPE_CHECKING, Any

import click

from lb_xdp.cli import suggest
from lb_xdp.cli.arguments import BackendPath, backend_path
from lb_xdp.cli.connect import connect
from lb_xdp.cli.override_table import render

if TYPE_CHECKING:
    from lb_xdp.cli.target import Target

PIPED_COLUMNS = 160


@click.group("override")
def command() -> None:
    """List and clear what was asked of backends.

    \b
    Example:
      sudo lb-xdp override list
      sudo lb-xdp override clear web/web1
    """


@command.command("list")
@click.option(
    "-o",
    "--output",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="json: a list, times in seconds since 1970.",
)
@click.pass_obj
def show(target: Target, output: str) -> None:
    """List what holds beside the file: what was asked, by whom, when, until when and why.

    \b
    Example:
      sudo lb-xdp override list
    """
    overrides = connect(target).overrides()
    if output == "json":
        click.echo(json.dumps(overrides, indent=2, ensure_ascii=False))
    elif not overrides:
        click.echo("no overrides: the file holds")
    else:
        columns = shutil.get_terminal_size((PIPED_COLUMNS, 24)).columns
        click.echo(render(overrides, now_s=time.time(), columns=columns), nl=False)


@command.command("clear")
@click.argument(
    "path", metavar="[SERVICE/BACKEND]", type=backend_path, required=False,
    shell_complete=suggest.backends,
)  # fmt: skip
@click.option("--all", "everything", is_flag=True, help="Of all backends, at once.")
@click.pass_obj
def clear(target: Target, path: BackendPath | None, *, everything: bool) -> None:
    """Let the file hold again for a backend, admin state and weight, or for all of them.

    \b
    Example:
      sudo lb-xdp override clear web/web1
      sudo lb-xdp override clear --all
    """
    if (path is None) is not everything:
        raise click.UsageError("Give SERVICE/BACKEND or --all.")
    client = connect(target)
    cleared = client.clear_overrides() if path is None else client.clear_override(*path)
    click.echo("\n".join(map(_cleared, cleared)) or "no overrides: the file holds")


def _cleared(override: dict[str, Any]) -> str:
    what = f"weight {override['value']}" if override["kind"] == "weight" else override["value"]
    return f"{override['service']}/{override['backend']}: {what} is cleared"
