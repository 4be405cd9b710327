"""``lb-xdp flows``: recorded flows, and how many there are."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import click

from lb_xdp.cli import suggest
from lb_xdp.cli.connect import connect
from lb_xdp.cli.flow_tables import render

if TYPE_CHECKING:
    from lb_xdp.cli.target import Target

PIPED_COLUMNS = 120
MOST = 10_000


@click.command("flows")
@click.option(
    "--service", metavar="NAME", help="Only of this service.", shell_complete=suggest.services
)
@click.option(
    "--backend", metavar="NAME", help="Only to backends of this name.",
    shell_complete=suggest.backend_names,
)  # fmt: skip
@click.option("--client", metavar="ADDRESS|PREFIX", help="Only from there: 192.0.2.7, 10.0.0.0/8.")
@click.option(
    "-n", "--limit", type=click.IntRange(0, MOST), default=20, show_default=True,
    help="List at most so many; the counts are of all that match.",
)  # fmt: skip
@click.option(
    "-o",
    "--output",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="json: everything, times in seconds.",
)
@click.pass_obj
def command(
    target: Target,
    *,
    service: str | None,
    backend: str | None,
    client: str | None,
    limit: int,
    output: str,
) -> None:
    """Show recorded flows, and how many each backend and client has.

    A flow is recorded where its service needs it (`lb-xdp service show` says why), and for a while
    where its slot has changed hands. All others follow from the ring alone: nobody has a list of
    them. `silent` is how long ago a flow's last packet was; when it began is not recorded.

    \b
    Example:
      sudo lb-xdp flows --service web --client 192.0.2.0/24
    """
    conditions = {"service": service, "backend": backend, "client": client, "limit": str(limit)}
    query = {key: value for key, value in conditions.items() if value is not None}
    found = connect(target).flows(query)
    if output == "json":
        click.echo(json.dumps(found, indent=2, ensure_ascii=False))
        return
    columns = shutil.get_terminal_size((PIPED_COLUMNS, 24)).columns
    click.echo(render(found, columns=columns), nl=False)
