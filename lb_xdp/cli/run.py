"""``lb-xdp run``: the daemon, in the foreground."""

from __future__ import annotations

from pathlib import Path

import click

from lb_xdp.cli.logs import LogFormat, setup


@click.command("run")
@click.option(
    "-c",
    "--config",
    "config_path",
    required=True,
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="The configuration, in YAML.",
)
@click.option("--replace", is_flag=True, help="Replace an XDP program that is not ours.")
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    help="The least that is logged.",
)
@click.option(
    "--log-format",
    type=click.Choice([form.value for form in LogFormat]),
    default=LogFormat.AUTO.value,
    show_default=True,
    help="auto: text on a terminal, priorities for systemd's journal, else JSON lines.",
)
def command(config_path: Path, log_level: str, log_format: str, *, replace: bool) -> None:
    """Run the daemon in the foreground.

    It loads the XDP program, attaches it, probes the backends and keeps the program's maps true to
    FILE. SIGHUP loads FILE again. SIGTERM and Ctrl-C end the daemon and leave forwarding on: what
    runs in the kernel goes on with the last known health. To stop forwarding use lb-xdp detach.

    \b
    Example:
      sudo lb-xdp run -c /etc/lb-xdp/gw1.yaml
    """
    from lb_xdp.daemon import run  # noqa: PLC0415 - --help must not import the whole daemon

    setup(log_level, LogFormat(log_format))
    run(config_path, replace)
