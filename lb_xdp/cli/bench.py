"""``lb-xdp bench``: what a packet costs in the program that a gateway runs. Needs no daemon."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table

from lb_xdp.cli.target import Target

if TYPE_CHECKING:
    from lb_xdp.datapath.bench import Figure
    from lb_xdp.datapath.bench_gateway import Report

FLOWS = 1_000
MAX_FLOWS = 1 << 20
ROUNDS = 5
COLUMNS = 100


@click.command("bench")
@click.option(
    "--flows",
    type=click.IntRange(1, MAX_FLOWS),
    default=FLOWS,
    show_default=True,
    help="How many flows each service gets.",
)
@click.option(
    "--rounds",
    type=click.IntRange(1),
    default=ROUNDS,
    show_default=True,
    help="How often everything is timed.",
)
@click.option(
    "-o",
    "--output",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="Times are in nanoseconds a packet.",
)
@click.pass_obj
def command(target: Target, *, flows: int, rounds: int, output: str) -> None:
    """Time the program that a gateway runs.

    Nanoseconds a packet for each service, beside a bare turnaround of frames (XDP_TX) and a bare
    encapsulation of the same minute. The program is loaded a second time, with counters and flows
    of its own: forwarding goes on undisturbed, though one CPU is busy meanwhile.

    \b
    Example:
      sudo lb-xdp bench
      sudo lb-xdp --name gw1 bench --flows 1000000 -o json
    """
    if target.socket:
        raise click.UsageError("bench finds the program by its gateway's pins: give --name.")
    from lb_xdp.datapath import bench_gateway  # noqa: PLC0415 - --help must not import numpy

    name = target.name or bench_gateway.only_gateway()
    report = bench_gateway.bench_gateway(name, flows=flows, rounds=rounds)
    if output == "json":
        click.echo(json.dumps(_as_json(report), indent=2))
        return
    title = f"gateway {report.gateway}, program id {report.program_id}, {report.flows} flows"
    Console(width=COLUMNS).print(_table(report, title))
    click.echo("Over what the measurement itself costs. The minimum tells on a busy machine.")


def _as_json(report: Report) -> dict[str, object]:
    """Return what JSON shows."""
    return {
        "gateway": report.gateway,
        "program_id": report.program_id,
        "flows": report.flows,
        "baselines": [{"name": name, **asdict(fig)} for name, fig in report.baselines.items()],
        "services": [
            {
                "service": str(measured.service),
                "mode": measured.mode.value,
                "packet": measured.kind.value,
                "action": measured.action,
                **asdict(measured.figure),
            }
            for measured in report.services
        ],
    }


def _table(report: Report, title: str) -> Table:
    """Return baselines and services as one table."""
    table = Table("service", "mode", "packet", "action", title=title)
    table.add_column("median ns", justify="right")
    table.add_column("min ns", justify="right")
    for name, figure in report.baselines.items():
        table.add_row(f"(bare {name})", "", "", "", *_numbers(figure))
    table.add_section()
    for measured in report.services:
        what = (measured.mode.value, measured.kind.value, measured.action)
        table.add_row(str(measured.service), *what, *_numbers(measured.figure))
    return table


def _numbers(figure: Figure) -> tuple[str, str]:
    return f"{figure.median_ns:.0f}", f"{figure.min_ns:.0f}"
