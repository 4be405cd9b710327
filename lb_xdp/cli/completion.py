"""``lb-xdp completion``: click's own completion scripts."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print the completion script of a shell.

    \b
    Example:
      lb-xdp completion bash > /etc/bash_completion.d/lb-xdp
      lb-xdp completion zsh > ~/.zfunc/_lb-xdp
      lb-xdp completion fish > ~/.config/fish/completions/lb-xdp.fish
    """
    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"click has no completion for {shell}.")
    click.echo(kind(ctx.find_root().command, {}, "lb-xdp", "_LB_XDP_COMPLETE").source())
