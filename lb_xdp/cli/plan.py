"""``lb-xdp plan``: what a configuration would change, and what that would cost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lb_xdp.cli.arguments import share
from lb_xdp.cli.connect import connect
from lb_xdp.errors import LbError

if TYPE_CHECKING:
    from lb_xdp.cli.target import Target

PIPED_COLUMNS = 100
EXIT_REFUSED = 1

max_moved_option = click.option(
    "--max-moved", metavar="SHARE", type=share,
    help="Refuse if more of some service's slots would move: 5%, 0.05.",
)  # fmt: skip
file_argument = click.argument(
    "file", required=False, type=click.Path(path_type=Path, allow_dash=True)
)


@click.command("plan")
@file_argument
@max_moved_option
@click.option(
    "-o",
    "--output",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="json: everything, shares from 0 to 1.",
)
@click.pass_obj
def command(target: Target, file: Path | None, *, max_moved: float | None, output: str) -> None:
    """Show what a configuration would change. Nothing is changed.

    FILE is read here, - from standard input; without it the daemon reads its own file again. The
    daemon goes the whole way of a reload but for its last step: new backends are probed, a new
    program is compiled and tried. Overrides and health count as they are now. The exit code is 1 if
    a reload would be refused, 3 if FILE has mistakes.

    Before an upgrade, the new version's command says as well what a restart into it would lose.

    \b
    Example:
      sudo lb-xdp plan /etc/lb-xdp/gw1.yaml
      sudo lb-xdp plan --max-moved 5% new.yaml && sudo lb-xdp reload --confirm 60s new.yaml
    """
    if not shown(target, file, max_moved, output):
        click.get_current_context().exit(EXIT_REFUSED)


def shown(target: Target, file: Path | None, max_moved: float | None, output: str) -> bool:
    """Show a plan; say whether it could be carried out."""
    plan = connect(target).plan(**text_of(file))
    plan["restart_loses"] = [] if target.url else list(_losses(plan))
    refusal = plan["refused"] or _too_much(plan, max_moved)
    if output == "json":
        click.echo(json.dumps(plan, indent=2, ensure_ascii=False))
    else:
        from lb_xdp.cli.plan_text import render  # noqa: PLC0415 - only where it is shown

        columns = shutil.get_terminal_size((PIPED_COLUMNS, 24)).columns
        click.echo(render(plan, columns=columns), nl=False)
    if refusal:
        click.echo(f"error: a reload would be refused: {refusal}", err=True)
    return not refusal


def text_of(file: Path | None) -> dict[str, str]:
    """Return what to send about a file: its text, and what it is called."""
    if file is None:
        return {}
    try:
        with click.open_file(str(file), encoding="utf-8") as stream:
            text = stream.read()
    except (OSError, UnicodeDecodeError) as error:
        raise click.UsageError(f"{file} cannot be read: {error}") from error
    return {"text": text, "source": "standard input" if str(file) == "-" else str(file.absolute())}


def _losses(plan: dict[str, Any]) -> tuple[str, ...]:
    """Return what a restart into this command's version would lose, as far as this user may see.

    The daemon that answered may be of another version: an upgrade is planned by the new command.
    """
    from lb_xdp.datapath.layout import layout  # noqa: PLC0415 - numpy is slow to import
    from lb_xdp.datapath.upgrade import would_lose  # noqa: PLC0415 - the same

    if plan["layout"] == layout().version:
        return ()
    try:
        return would_lose(plan["gateway"])
    except (LbError, OSError):
        return ()


def _too_much(plan: dict[str, Any], most: float | None) -> str:
    worst = plan["moved_share_max"]
    if most is None or worst <= most:
        return ""
    return f"{worst:.1%} of a service's slots would move, more than {most:.1%}"
