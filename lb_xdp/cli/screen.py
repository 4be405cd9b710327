"""Lines and tables of text for a terminal: drawn here where they fit, by rich where they must fold.

A gateway may have 10,000 backends, and rich takes half a millisecond to draw a row and a tenth of
a second to be imported. What is plain ASCII and fits the columns looks the same without it: cells
side by side, a gap between them. This module owns that, and the colours. It refuses to know what
is shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from io import StringIO
from itertools import repeat
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

Span: TypeAlias = str | tuple[str, str]
"""Text, or text and its style."""

_CODES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "magenta": "35"}
_RESET = "\x1b[0m"


class Column(NamedTuple):
    """One column of a table. Only one that ``folds`` may become narrower than its cells."""

    heading: str = ""
    right: bool = False
    folds: bool = False


class Screen:
    """Collects what is printed. ``columns`` is the width, in characters."""

    def __init__(self, columns: int, *, colour: bool) -> None:
        self.columns = columns
        self._colour = colour
        self._lines: list[str] = []

    def text(self) -> str:
        """Return all of it; every line ends in a newline, and none in blanks."""
        return "".join(f"{line.rstrip()}\n" for line in self._lines)

    def line(self, *spans: Span, indent: int = 0) -> None:
        """Print a line; one that is too long is wrapped."""
        plain = "".join(map(_text, spans))
        if _simple(plain) and indent + len(plain) <= self.columns:
            self._lines.append(" " * indent + "".join(map(self._painted, spans)))
        else:
            self._wrap(spans, indent)

    def table(
        self, columns: Sequence[Column], rows: Sequence[Sequence[Span]], *, gap: int, indent: int
    ) -> None:
        """Print a table under its headings, if any; its cells fold where it is too wide."""
        headings: list[list[Span]] = []
        if any(column.heading for column in columns):
            headings.append([(column.heading, "dim") for column in columns])
        spans = list(zip(*headings, *rows, strict=True))
        texts = [list(map(_text, column)) for column in spans]
        widths = [max(map(len, column)) for column in texts]
        needed = indent + sum(widths) + gap * (len(widths) - 1)
        if needed <= self.columns and all(_simple("".join(column)) for column in texts):
            drawn = map(self._column, columns, widths, spans, texts)
            lines = map((" " * gap).join, zip(*drawn, strict=True))
            self._lines += [" " * indent + line for line in lines]
        else:
            self._fold(columns, rows, gap, indent)

    def _column(
        self, column: Column, width: int, spans: Sequence[Span], texts: Sequence[str]
    ) -> list[str]:
        """Return a column's cells, all of one width but for their colours."""
        align = str.rjust if column.right else str.ljust
        cells = map(align, texts, repeat(width))
        if not self._colour:
            return list(cells)
        return [
            cell.replace(text, self._painted(span), 1)
            for cell, text, span in zip(cells, texts, spans, strict=True)
        ]

    def _painted(self, span: Span) -> str:
        if isinstance(span, str):
            return span
        text, style = span
        if not (self._colour and text and style):
            return text
        codes = ";".join(_CODES[word] for word in style.split())
        return f"\x1b[{codes}m{text}{_RESET}"

    # What does not fit.

    def _wrap(self, spans: Iterable[Span], indent: int) -> None:
        from rich.text import Text  # noqa: PLC0415 - slow to import, and rarely needed

        self._print(Text.assemble(*spans), indent)

    def _fold(
        self, columns: Sequence[Column], rows: Sequence[Sequence[Span]], gap: int, indent: int
    ) -> None:
        from rich.table import Table  # noqa: PLC0415 - slow to import, and rarely needed
        from rich.text import Text  # noqa: PLC0415 - the same

        table = Table(
            box=None,
            show_header=any(column.heading for column in columns),
            pad_edge=False,
            padding=(0, gap, 0, 0),
            header_style="dim",
        )
        for column in columns:
            table.add_column(
                column.heading,
                justify="right" if column.right else "left",
                overflow="fold" if column.folds else "ellipsis",
                no_wrap=not column.folds,
            )
        for row in rows:
            table.add_row(*(Text.assemble(span) for span in row))
        self._print(table, indent)

    def _print(self, renderable: Text | Table, indent: int) -> None:
        from rich.console import Console  # noqa: PLC0415 - slow to import, and rarely needed
        from rich.padding import Padding  # noqa: PLC0415 - the same

        console = Console(
            file=StringIO(),
            width=self.columns,
            force_terminal=self._colour,
            color_system="standard" if self._colour else None,
            markup=False,
            highlight=False,
            emoji=False,
        )
        with console.capture() as capture:
            console.print(Padding(renderable, (0, 0, 0, indent)))
        self._lines += capture.get().splitlines()


def _text(span: Span) -> str:
    return span if isinstance(span, str) else span[0]


def _simple(text: str) -> bool:
    """Say whether every character takes one column."""
    return text.isascii() and text.isprintable()
