"""The fast way to write samples gives what the library writes of them, in every form."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from lb_xdp.metrics.table import MARK, Table, label, written

FORMS = (
    "",
    "text/plain; version=1.0.0; escaping=allow-utf-8",
    "text/plain; version=1.0.0; escaping=dots",
    "application/openmetrics-text",
    "application/openmetrics-text; version=1.0.0; escaping=underscores",
    "application/openmetrics-text; version=1.0.0; escaping=values",
)
LABELS = ("backend", "service")

counts = st.integers(0, 2**64)
values = counts | st.integers(0, 2_000_000) | st.floats()
names = st.text() | st.sampled_from(["%s", "%", "\\", '"', "a\nb", MARK, " 0.0", "web/1"])
rows = st.lists(st.tuples(st.tuples(names, names), st.tuples(values, values, values)))

Values = tuple[float, ...]
Rows = list[tuple[tuple[str, str], Values]]


class Families(Collector):
    """Families, as the library collects them."""

    def __init__(self, *families: Metric) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        yield from self._families


def counters(rows: Rows) -> CounterMetricFamily:
    """Return a family with one sample for each row."""
    family = CounterMetricFamily("lb_some", 'Of "it"\nand 7 % more.', labels=LABELS)
    for labels, row in rows:
        family.add_metric(labels, row[0])
    return family


def gauges(rows: Rows) -> GaugeMetricFamily:
    """Return a family with three samples for each row, told apart by a label."""
    family = GaugeMetricFamily("lb_other", "Of that.", labels=(*LABELS, "state"))
    for labels, row in rows:
        for state, value in zip(("up", "50%", "a\\b"), row, strict=True):
            family.add_metric((*labels, state), value)
    return family


def histograms(rows: Rows) -> HistogramMetricFamily:
    """Return a family with two buckets for each row, and their count and sum."""
    family = HistogramMetricFamily("lb_third", "How long.", labels=LABELS)
    for labels, (few, many, total_s) in rows:
        family.add_metric(labels, [("0.001", few), ("+Inf", many)], total_s)
    return family


@pytest.mark.parametrize(
    ("make", "samples_of"),
    [
        (counters, lambda row: row[:1]),
        (gauges, lambda row: row),
        (histograms, lambda row: (row[0], row[1], row[1], row[2])),
    ],
)
@given(rows=rows, accept=st.sampled_from(FORMS))
def test_a_table_reads_as_the_library_would_write_it(
    make: Callable[[Rows], Metric],
    samples_of: Callable[[Values], Values],
    rows: Rows,
    accept: str,
) -> None:
    """Whatever labels and values are, and whichever form is asked for, not a byte differs."""
    encoder, _ = choose_encoder(accept)
    marked = make([((MARK, MARK), (0, 0, 0))])
    table = Table(marked, [((label(a), label(b)), samples_of(row)) for (a, b), row in rows])
    alone = GaugeMetricFamily("lb_total", "All.", value=len(rows))
    text = b"".join(written([table, alone], encoder))
    assert text == encoder(Families(make(rows), alone))
