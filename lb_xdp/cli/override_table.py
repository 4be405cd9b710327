"""Overrides as a table."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lb_xdp.cli.status_table import duration
from lb_xdp.cli.table import text_table


def render(overrides: Iterable[dict[str, Any]], *, now_s: float, columns: int) -> str:
    """Return the overrides as text that ends in a newline; ``now_s`` is the time of day."""
    headings = ("backend", "asked", "by", "since", "ends in", "reason")
    rows = [_row(one, now_s) for one in overrides]
    return text_table(headings, rows, columns=columns, folding=headings)


def _row(one: dict[str, Any], now_s: float) -> tuple[str, ...]:
    end_s = one["expires_timestamp_s"]
    return (
        f"{one['service']}/{one['backend']}",
        f"weight {one['value']}" if one["kind"] == "weight" else one["value"],
        one["author"],
        duration(now_s - one["at_timestamp_s"]),
        "-" if end_s is None else duration(end_s - now_s),
        one["reason"],
    )
