"""The tables of routes in docs/api.md, made from ``routes``.

    python -m lb_xdp.api.reference                 print the tables
    python -m lb_xdp.api.reference docs/api.md     put them between the page's markers

It owns the tables' form. What a route takes stands in ``routes``, so the page cannot say otherwise;
a unit test compares the committed page with ``render()``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from lb_xdp.api.route import Route
from lb_xdp.api.routes import ROUTES
from lb_xdp.errors import LbError

BEGIN = "<!-- routes: made by `python -m lb_xdp.api.reference docs/api.md` -->"
END = "<!-- routes: end -->"


def render() -> str:
    """Return the tables in Markdown, in the order of the routes, without the markers."""
    routes = [f"| `{r.method} {r.path}` | {_keys(r)} | {r.summary} |" for r in ROUTES]
    return "\n".join([
        "| request | may say | what it is |",
        "|---|---|---|",
        *routes,
        "",
        "| key | of | meaning |",
        "|---|---|---|",
        *_meanings(),
        "",
    ])  # fmt: skip


def _keys(route: Route) -> str:
    query = [f"`?{name}=`" for name in route.query]
    return ", ".join([*query, *(f"`{name}`" for name in route.body or {})])


def _meanings() -> Iterator[str]:
    """Yield a row for each key; one that several routes have in the same meaning, once."""
    found: dict[tuple[str, str], list[str]] = {}
    for route in ROUTES:
        for name, field in {**route.query, **(route.body or {})}.items():
            found.setdefault((name, field.meaning), []).append(f"`{route.path}`")
    for (name, meaning), paths in found.items():
        yield f"| `{name}` | {', '.join(dict.fromkeys(paths))} | {meaning} |"


def insert(page: str) -> str:
    """Return a page with the tables between its markers. Raises LbError without markers."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise LbError(f"the page has no place for the tables: `{BEGIN}` and `{END}`")
    return f"{before}{BEGIN}\n{render()}{END}{after}"


def main(arguments: list[str]) -> int:
    """Print the tables, or renew them in the pages that are named; return the exit code."""
    if not arguments:
        sys.stdout.write(render())
    for path in map(Path, arguments):
        path.write_text(insert(path.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
