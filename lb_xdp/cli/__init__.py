"""The command ``lb-xdp``: global options, the list of commands, and what errors look like.

This module owns the exit codes and the form of messages. It refuses to own what a command does:
each has a file of its name, imported when it is asked for, so that ``--help`` stays fast.

Exit codes: 0 done, 1 failed, 2 usage, 3 bad configuration, 4 daemon not reachable, 130 interrupted.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import click

from lb_xdp import __version__
from lb_xdp.cli.target import Target, target_of
from lb_xdp.errors import InvalidConfigError, LbError

EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it

# In the order in which a newcomer needs them. A unit test compares them with each command's help.
COMMANDS = {
    "check": "Validate a configuration file; touch nothing.",
    "run": "Run the daemon in the foreground.",
    "status": "Show datapath, services and backends.",
    "service": "Show how services forward, spread and remember.",
    "backend": "Show, drain, disable, enable and weigh backends.",
    "override": "List and clear what was asked of backends.",
    "events": "Show what happened, when and why.",
    "pool": "Show pools and who shares them.",
    "flows": "Show recorded flows, and how many each backend and client has.",
    "plan": "Show what a configuration would change.",
    "reload": "Go to another configuration, all of it or nothing.",
    "confirm": "Keep what a reload with --confirm has changed.",
    "rollback": "Undo what a reload with --confirm has changed.",
    "detach": "Remove program and pins: forwarding stops.",
    "bench": "Time the program that a gateway runs.",
    "decap": "Undo the tunnels of gateways, on a backend host.",
    "schema": "Print the JSON Schema of the configuration.",
    "completion": "Print the completion script of a shell.",
}


class LazyGroup(click.Group):
    """A group that imports a command's module when the command is used, and reports errors."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of COMMANDS."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return the command."""
        del ctx
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"lb_xdp.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing them."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; turn our errors into a message on stderr and an exit code."""
        try:
            return super().invoke(ctx)
        except InvalidConfigError as error:
            # Bare lines, file:line:col first: editors and CI jump to them.
            click.echo(str(error), err=True)
            ctx.exit(error.exit_code)
        except LbError as error:
            click.echo(f"error: {error}", err=True)
            ctx.exit(error.exit_code)
        except (KeyboardInterrupt, click.Abort):
            click.echo(err=True)
            ctx.exit(EXIT_INTERRUPTED)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--name", metavar="NAME", help="The gateway to talk to; not needed while one runs.")
@click.option(
    "--socket",
    type=click.Path(path_type=Path),
    help="The API socket to talk to, where the configuration sets gateway.api.socket.",
)
@click.option(
    "--url",
    metavar="URL",
    envvar="LB_XDP_URL",
    help="A gateway with gateway.api.listen: https://gw1.example.net:8443.",
)
@click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    envvar="LB_XDP_TOKEN_FILE",
    help="With --url: the file that holds your token.",
)
@click.option(
    "--ca",
    type=click.Path(path_type=Path),
    envvar="LB_XDP_CA",
    help="With --url: certificates of those who may vouch for the gateway (PEM).",
)
@click.version_option(__version__, prog_name="lb-xdp", message="%(prog)s %(version)s")
@click.pass_context
def main(
    ctx: click.Context,
    *,
    name: str | None,
    socket: Path | None,
    url: str | None,
    token_file: Path | None,
    ca: Path | None,
) -> None:
    """Forward packets to healthy backends in XDP, and say what it does.

    \b
    Example:
      lb-xdp check lb.yaml
      sudo lb-xdp run -c lb.yaml
      sudo lb-xdp --name gw1 status
      lb-xdp --url https://gw1.example.net:8443 --token-file ~/gw1.token status
    """
    if name and socket:
        raise click.UsageError("--name and --socket exclude each other: give the one you know.")
    if ctx.get_parameter_source("url") is click.core.ParameterSource.COMMANDLINE and (
        name or socket
    ):
        raise click.UsageError("--url is another place than --name and --socket: give one of them.")
    given = ctx.find_object(Target) or Target()
    ctx.obj = target_of(given, name=name, socket=socket, url=url, token_file=token_file, ca=ca)
