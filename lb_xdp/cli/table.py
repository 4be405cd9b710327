"""A plain table that fits a terminal: headings, rows, and what folds when there is no room."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from lb_xdp.cli.screen import Column, Screen


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
    screen = Screen(columns, colour=False)
    shape = [Column(name, right=name in numbers, folds=name in folding) for name in headings]
    screen.table(shape, list(rows), gap=2, indent=0)
    return screen.text()
