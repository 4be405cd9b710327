"""Recorded flows as tables: the counts, then the flows themselves."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any

from lb_xdp.cli.status_table import duration
from lb_xdp.cli.table import text_table
from lb_xdp.core.endpoint import format_endpoint

_NAMED = 5  # services in a sentence


def render(found: dict[str, Any], *, columns: int) -> str:
    """Return a list of flows of the API as text that ends in a newline."""
    return "\n".join(_tables(found, columns))


def _tables(found: dict[str, Any], columns: int) -> Iterator[str]:
    flows, matched = found["flows"], found["matched"]
    if found["backends"]:
        yield _counts("backend", found["backends"], columns)
    if found["clients"]:
        yield _counts("client", found["clients"], columns)
    if flows:
        yield text_table(
            ("client", "service", "backend", "state", "silent"),
            map(_row, flows),
            columns=columns,
            numbers=("silent",),
            folding=("client", "service", "backend"),
        )
    shown = f"{len(flows):,} of {matched:,} flows shown; {found['recorded']:,} records in all"
    yield "\n".join([shown, *_unlisted(found["not_recorded"])]) + "\n"


def _counts(what: str, counts: list[dict[str, Any]], columns: int) -> str:
    rows = [
        (
            f"{each['service']}/{each['backend']}" if what == "backend" else each["client"],
            f"{each['flows']:,}",
            f"{each['open']:,}",
        )
        for each in counts
    ]
    headings = (what, "flows", "open")
    return text_table(headings, rows, columns=columns, numbers=("flows", "open"), folding=(what,))


def _row(flow: dict[str, Any]) -> tuple[str, ...]:
    return (
        format_endpoint(ip_address(flow["client"]), flow["client_port"]),
        flow["service"],
        flow["backend"],
        flow["state"],
        duration(flow["silent_s"]),
    )


def _unlisted(services: list[str]) -> list[str]:
    """Say of which services there are flows that nobody can list."""
    if not services:
        return []
    more = f" and {len(services) - _NAMED} more" if len(services) > _NAMED else ""
    return [f"of {', '.join(services[:_NAMED])}{more} most flows have no record"]
