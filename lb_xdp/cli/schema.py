"""``lb-xdp schema``: the JSON Schema of the configuration, for editors."""

from __future__ import annotations

import json

import click

from lb_xdp.config import json_schema


@click.command("schema")
def command() -> None:
    """Print the JSON Schema of the configuration.

    Editors with a YAML language server complete and check the file by it.

    \b
    Example:
      lb-xdp schema > lb-xdp.schema.json
    """
    click.echo(json.dumps(json_schema(), indent=2))
