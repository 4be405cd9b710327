"""What is printed is the same whether it is drawn here or by rich."""

from __future__ import annotations

import re
from collections.abc import Sequence
from io import StringIO

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from lb_xdp.cli.screen import Column, Screen, Span

_WORDS = st.text("abcXYZ019-:.[]/ ", max_size=12).map(str.strip)
_STYLES = st.sampled_from(["", "bold", "green", "bold red", "yellow", "dim", "magenta"])
_SPANS = st.one_of(_WORDS, st.tuples(_WORDS, _STYLES))
_COLUMNS = [Column("backend", folds=True), Column("state"), Column("packets", right=True)]
_ROWS = st.lists(st.tuples(_SPANS, _SPANS, _SPANS), min_size=1, max_size=4)
_ESCAPE = re.compile(r"\x1b\[([0-9;]*)m")


def by_rich(rows: Sequence[Sequence[Span]], columns: int, gap: int, *, colour: bool) -> str:
    table = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), header_style="dim")
    for column in _COLUMNS:
        table.add_column(
            column.heading,
            justify="right" if column.right else "left",
            overflow="fold" if column.folds else "ellipsis",
            no_wrap=not column.folds,
        )
    for row in rows:
        table.add_row(*(Text.assemble(span) for span in row))
    console = Console(
        file=StringIO(),
        width=columns,
        force_terminal=colour,
        color_system="standard" if colour else None,
        markup=False,
    )
    with console.capture() as capture:
        console.print(Padding(table, (0, 0, 0, 2)))
    return "".join(f"{line.rstrip()}\n" for line in capture.get().splitlines())


def painted(text: str) -> list[list[tuple[str, str]]]:
    """Return each line's visible characters with the style in force; blanks have none."""
    lines = []
    for line in text.splitlines():
        style, found, at = "", list[tuple[str, str]](), 0
        for escape in [*_ESCAPE.finditer(line), None]:
            upto = escape.start() if escape else len(line)
            found += [(char, "" if char == " " else style) for char in line[at:upto]]
            if escape:
                style, at = escape[1].removeprefix("0"), escape.end()
        while found and found[-1][0] == " ":
            found.pop()
        lines.append(found)
    return lines


@given(_ROWS, st.integers(20, 60), st.sampled_from([1, 2]))
def test_tables_look_as_rich_draws_them(
    rows: list[tuple[Span, ...]], columns: int, gap: int
) -> None:
    """Cells, gaps and colours are the same, whether the table fits or has to fold."""
    for colour in (False, True):
        screen = Screen(columns, colour=colour)
        screen.table(_COLUMNS, rows, gap=gap, indent=2)
        assert painted(screen.text()) == painted(by_rich(rows, columns, gap, colour=colour))


def test_a_long_line_is_wrapped_and_a_short_one_is_not() -> None:
    """Nothing is cut off, and nothing is wider than the screen."""
    screen = Screen(20, colour=False)
    screen.line(("short", "bold"), " line")
    screen.line()
    screen.line("words that do not fit into one line", indent=4)
    lines = screen.text().splitlines()
    assert lines[:2] == ["short line", ""]
    assert " ".join(" ".join(lines[2:]).split()) == "words that do not fit into one line"
    assert max(map(len, lines)) <= 20
    assert all(line.startswith("    ") for line in lines[2:])


def test_wide_characters_are_counted_as_they_are_shown() -> None:
    """A name in Chinese takes two columns a character, so the next column stands further right."""
    screen = Screen(40, colour=False)
    screen.table(_COLUMNS, [("后端", "up", "1"), ("web", "up", "2")], gap=2, indent=0)
    lines = screen.text().splitlines()
    assert lines[1].index("up") + 2 == lines[2].index("up")
