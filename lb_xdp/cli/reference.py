"""docs/cli.md, made from the commands' own help: ``python -m lb_xdp.cli.reference > docs/cli.md``.

A unit test compares the committed file with ``render()``.
"""

from __future__ import annotations

from typing import Any

import click

from lb_xdp.cli import COMMANDS, main

HEAD = """# Commands

Made from `lb-xdp --help` by `python -m lb_xdp.cli.reference > docs/cli.md`; do not edit.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | failed; the message says what, where and what to do |
| 2 | the command was not understood |
| 3 | the configuration is refused; every mistake is listed, nothing was touched |
| 4 | no daemon answers |
| 130 | interrupted with Ctrl-C |
"""


def render() -> str:
    """Return the whole file."""
    # A context made by hand takes none of the command's own settings, -h among them.
    settings = {**main.context_settings, "max_content_width": 80, "terminal_width": 80}
    root = click.Context(main, info_name="lb-xdp", **settings)
    sections = [HEAD, _section("lb-xdp", main.get_help(root))]
    for name in COMMANDS:
        command = main.get_command(root, name)
        if command is None:
            raise LookupError(f"command {name} is listed but has no module")
        sections += _command(f"lb-xdp {name}", command, root, settings)
    return "\n".join(sections)


def _command(
    title: str, command: click.Command, parent: click.Context, settings: dict[str, Any]
) -> list[str]:
    """Return the section of a command, and those of its subcommands."""
    context = click.Context(command, parent, command.name, **settings)
    sections = [_section(title, command.get_help(context))]
    for name, inner in getattr(command, "commands", {}).items():
        sections += _command(f"{title} {name}", inner, context, settings)
    return sections


def _section(title: str, text: str) -> str:
    """Return a heading and the help in a block."""
    lines = "\n".join(line.rstrip() for line in text.splitlines())
    return f"## {title}\n\n```text\n{lines}\n```\n"


if __name__ == "__main__":
    click.echo(render(), nl=False)
