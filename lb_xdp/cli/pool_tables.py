"""Pools as tables: a line for each, or a table of each one's backends."""

from __future__ import annotations

from typing import Any

from lb_xdp.cli.table import text_table


def summary(pools: list[dict[str, Any]], columns: int) -> str:
    """Return a line for each pool, as text that ends in a newline."""
    rows = [
        (
            pool["name"],
            f"{sum(member['state'] == 'up' for member in pool['backends'])}",
            f"{len(pool['backends'])}",
            ", ".join(pool["services"]),
        )
        for pool in pools
    ]
    headings = ("pool", "up", "of", "services")
    return text_table(
        headings, rows, columns=columns, numbers=("up", "of"), folding=("pool", "services")
    )


def details(pools: list[dict[str, Any]], columns: int) -> str:
    """Return each pool with the backends of each of its services."""
    return "\n".join(
        f"{pool['name']}: services {', '.join(pool['services'])}\n{_members(pool, columns)}"
        for pool in pools
    )


def _members(pool: dict[str, Any], columns: int) -> str:
    rows = [
        (
            f"{member['service']}/{member['backend']}",
            member["address"],
            member["state"],
            member["admin"],
            member["health"],
            str(member["weight"]),
        )
        for member in pool["backends"]
    ]
    return text_table(
        ("backend", "address", "state", "admin", "health", "weight"),
        rows,
        columns=columns,
        numbers=("weight",),
        folding=("backend", "address"),
    )
