"""Families with samples for each of thousands of backends, as text.

A gateway may have 350,000 samples, and the library looks at each from all sides before it writes
it. So it writes those of one row, with a mark in place of each label that differs: they are the
pattern that all other rows are written by, in whichever form the library was asked for. This module
owns the pattern, and how labels and numbers are written. It refuses to know what is exposed. A
property test compares its text with what the library makes of the same samples.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

MARK = "\x01"
"""Stands for the value of a label that differs from row to row."""

Encoder = Callable[[Collector], bytes]
"""Writes all that a collector has, in one form of the exposition: the library's."""

Labels: TypeAlias = tuple[str, ...]
"""Values of the labels that differ, in the order of the labels' names, each as ``label`` has it."""

Row: TypeAlias = tuple[Labels, Sequence[float]]
"""The labels of a row's samples, and what each of them is."""

_EXPONENT_FROM = 1_000_000
_HEAD = re.compile(r"(?:#.*\n)*")
_VALUE = re.compile(r" 0\.0$", re.MULTILINE)


class Table(NamedTuple):
    """A family with the samples of many rows.

    ``family`` has those of one: their values are 0, and ``MARK`` is the value of labels that
    differ. Its other labels are the same in each row, and so is the order of the samples.
    """

    family: Metric
    rows: Iterable[Row]


class _Of(Collector):
    """Some families."""

    def __init__(self, *families: Metric) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        """Yield them."""
        yield from self._families


def written(families: Iterable[Metric | Table], encoder: Encoder) -> Iterator[bytes]:
    """Yield the exposition piece by piece: what the library would write, in its order."""
    end = encoder(_Of())
    for family in families:
        if isinstance(family, Table):
            text = encoder(_Of(family.family)).removesuffix(end).decode()
            yield _filled(text, family.rows).encode()
        else:
            yield encoder(_Of(family)).removesuffix(end)
    yield end


def label(value: str) -> str:
    """Return a label's value as both text forms have it between quotes."""
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def number(value: float) -> str:
    """Return a sample's value as both text forms have it; the library's rules, the likely first."""
    if type(value) is int and 0 <= value < _EXPONENT_FROM:
        return f"{value}.0"
    text: str = floatToGoString(value)  # type: ignore[no-untyped-call]  # untyped upstream
    return text


def _filled(text: str, rows: Iterable[Row]) -> str:
    """Return a family's text with samples for all rows instead of the marked ones."""
    samples = _HEAD.sub("", text, count=1)
    head = text.removesuffix(samples)
    pattern = _VALUE.sub(" %s", samples.replace("%", "%%")).replace(MARK, "%s")
    return "".join([head, *(pattern % _parts(*row) for row in rows)])


def _parts(labels: Labels, values: Sequence[float]) -> tuple[str, ...]:
    if len(values) == 1:
        return (*labels, number(values[0]))
    return tuple(part for value in values for part in (*labels, number(value)))
