"""Overrides as a table."""

from __future__ import annotations

from collections.abc import Iterable
from io import StringIO
from typing import Any

from rich.console import Console
from rich.table import Table

from lb_xdp.cli.status_table import duration


def render(overrides: Iterable[dict[str, Any]], *, now_s: float, columns: int) -> str:
    """Return the overrides as text that ends in a newline; ``now_s`` is the time of day."""
    console = Console(file=StringIO(), width=columns, markup=False, highlight=False, emoji=False)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for heading in ("backend", "asked", "by", "since", "ends in", "reason"):
        table.add_column(heading, overflow="fold")
    for one in overrides:
        end_s = one["expires_timestamp_s"]
        table.add_row(
            f"{one['service']}/{one['backend']}",
            f"weight {one['value']}" if one["kind"] == "weight" else one["value"],
            one["author"],
            duration(now_s - one["at_timestamp_s"]),
            "-" if end_s is None else duration(end_s - now_s),
            one["reason"],
        )
    with console.capture() as capture:
        console.print(table)
    return "".join(f"{line.rstrip()}\n" for line in capture.get().splitlines())
