"""``lb-xdp service``: how each service forwards, spreads and remembers."""

from __future__ import annotations

import dataclasses
import json
import shutil
from typing import TYPE_CHECKING, Protocol

import click

from lb_xdp.cli import suggest
from lb_xdp.cli.connect import connect
from lb_xdp.cli.service_table import render, summary

if TYPE_CHECKING:
    from lb_xdp.cli.target import Target
    from lb_xdp.core.snapshot import ServiceStatus

PIPED_COLUMNS = 120


class Render(Protocol):
    """What makes services into text of so many columns."""

    def __call__(self, services: list[ServiceStatus], *, columns: int) -> str:
        """Return text that ends in a newline."""
        ...


_output = click.option(
    "-o",
    "--output",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="json: a list of services, their backends included.",
)


@click.group("service")
def command() -> None:
    """Show how services forward, spread and remember.

    \b
    Example:
      sudo lb-xdp service list
      sudo lb-xdp service show web -o json
    """


@command.command("list")
@_output
@click.pass_obj
def list_services(target: Target, output: str) -> None:
    """List services, a line each.

    \b
    Example:
      sudo lb-xdp service list
    """
    _print(list(connect(target).snapshot().services), output, summary)


@command.command("show")
@click.argument("names", metavar="[NAME]...", nargs=-1, shell_complete=suggest.services)
@_output
@click.pass_obj
def show(target: Target, names: tuple[str, ...], output: str) -> None:
    """Show services: all of them, or those named.

    Says of each which of its flows are recorded in the flow table, and why. A service whose flows
    follow from the ring needs records only while slots are unsettled, that is for a while after
    the ring has changed.

    \b
    Example:
      sudo lb-xdp service show web
    """
    known = {service.name: service for service in connect(target).snapshot().services}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise click.UsageError(
            f"No service is named {', '.join(unknown)}. There are: {', '.join(known)}."
        )
    _print([known[name] for name in names or known], output, render)


def _print(services: list[ServiceStatus], output: str, render: Render) -> None:
    if output == "json":
        document = [dataclasses.asdict(service) for service in services]
        click.echo(json.dumps(document, indent=2, ensure_ascii=False))
    else:
        columns = shutil.get_terminal_size((PIPED_COLUMNS, 24)).columns
        click.echo(render(services, columns=columns), nl=False)
