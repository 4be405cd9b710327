"""``lb-xdp check``: validate a file without touching anything; needs neither root nor bcc."""

from __future__ import annotations

from pathlib import Path

import click

from lb_xdp.config import effective, load_config
from lb_xdp.core.model import Config


@click.command("check")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--effective",
    "show_effective",
    is_flag=True,
    help="Print the configuration with every default filled in.",
)
def command(file: Path, *, show_effective: bool) -> None:
    """Validate a configuration file; touch nothing.

    Every mistake is reported, one per line, as file:line:col: path: message; the exit code is
    then 3. Warnings go to stderr and do not change the exit code.

    \b
    Example:
      lb-xdp check lb.yaml
      lb-xdp check --effective lb.yaml
    """
    config = load_config(file)
    for warning in config.warnings:
        click.echo(f"warning: {warning}", err=True)
    if show_effective:
        click.echo(effective(config), nl=False)
    # With --effective stdout is a configuration file and nothing else.
    click.echo(f"{file}: ok, {summary(config)}", err=show_effective)


def summary(config: Config) -> str:
    """Return ``1 service, 3 backends``. A backend counts once, however many services share it."""
    backends = {(service.pool.name, backend.key) for service, backend in config.backends()}
    return f"{_count(len(config.services), 'service')}, {_count(len(backends), 'backend')}"


def _count(number: int, noun: str) -> str:
    """Return the number and the noun, in the plural where it is one."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
