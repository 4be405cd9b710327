"""A plain table that fits a terminal: headings, rows, and what folds when there is no room."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from io import StringIO

from rich.console import Console
from rich.table import Table


def text_table(
    headings: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    columns: int,
    numbers: Collection[str] = (),
    folding: Collection[str] = (),
) -> str:
    """Return a table as text that ends in a newline.

    ``numbers`` are the headings of columns to be aligned on the right, ``folding`` those of columns
    that may take several lines; the others never do.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for heading in headings:
        table.add_column(
            heading,
            justify="right" if heading in numbers else "left",
            overflow="fold",
            no_wrap=heading not in folding,
        )
    for row in rows:
        table.add_row(*row)
    console = Console(file=StringIO(), width=columns, markup=False, highlight=False, emoji=False)
    with console.capture() as capture:
        console.print(table)
    return "".join(f"{line.rstrip()}\n" for line in capture.get().splitlines())
