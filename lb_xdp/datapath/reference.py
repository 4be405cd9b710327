"""The table of reasons in docs/packet-walk.md, made from ``bpf/lb_reason.h``.

    python -m lb_xdp.datapath.reference                        print the table
    python -m lb_xdp.datapath.reference docs/packet-walk.md    put it between the page's markers

It owns the table's form. What a reason means stands in the header, so the page cannot say
otherwise; a unit test compares the committed page with ``render()``.
"""

from __future__ import annotations

import sys
from pathlib import Path

from lb_xdp.datapath.layout import layout
from lb_xdp.errors import DatapathError

BEGIN = "<!-- reasons: made by `python -m lb_xdp.datapath.reference docs/packet-walk.md` -->"
END = "<!-- reasons: end -->"


def render() -> str:
    """Return the table in Markdown, in the order of the header, without the markers."""
    rows = [f"| `{r.name}` | {r.verdict} | {r.meaning} |" for r in layout().reasons]
    return "\n".join(["| reason | verdict | what the packet was |", "|---|---|---|", *rows, ""])


def insert(page: str) -> str:
    """Return a page with the table between its markers. Raises DatapathError without markers."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise DatapathError(f"the page has no place for the table: `{BEGIN}` and `{END}`")
    return f"{before}{BEGIN}\n{render()}{END}{after}"


def main(arguments: list[str]) -> int:
    """Print the table, or renew it in the pages that are named; return the exit code."""
    if not arguments:
        sys.stdout.write(render())
    for path in map(Path, arguments):
        path.write_text(insert(path.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
