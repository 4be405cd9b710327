"""Nanoseconds a packet of every mode, packet and state, beside baselines of the same run.

Run by ``scripts/bench``: which rows there are, and how they are printed. Groups are measured one
after the other, each with baselines of its own; within a group rounds go over all rows in turn.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lb_xdp.core.model import Affinity, Algorithm, Mode
from lb_xdp.datapath.bench import BASELINES, Case, Figure, Harness, measure
from lb_xdp.datapath.bench_frames import Kind
from tests.support import sandbox, timing_controller, timing_live, timing_probes
from tests.support.program import INNER, OUTER, Wire
from tests.support.timing_lab import Built, Setup, To, make_wire, prime, traffic

FLOWS = {"1": 1, "1k": 1_000, "100k": 100_000, "1M": 1_000_000}
ROUNDS = 5
_FAMILIES = (4, 6)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table: a packet for a gateway. ``baseline`` goes instead of its program."""

    group: str
    name: str
    setup: Setup
    kind: Kind = Kind.ESTABLISHED
    to: To = To.VIP
    ingress: str = INNER
    baseline: str | None = None

    @property
    def title(self) -> str:
        """Return what names the row in reports, and what ``--cases`` looks at."""
        return f"{self.group}: {self.name}, IPv{self.setup.family}"


def _baselines(group: str) -> Iterator[Row]:
    for family in _FAMILIES:
        for name in BASELINES:
            if not name.startswith("encap") or name.endswith(str(family)):
                bare = name.split(",", maxsplit=1)[0]
                yield Row(group, f"bare {bare}", Setup(Mode.DSR, family), baseline=name)


def _forwarding() -> Iterator[Row]:
    for mode in Mode:
        for family in _FAMILIES:
            setup, syns = Setup(mode, family), Setup(mode, family, number=int(mode is Mode.FULLNAT))
            yield Row("forwarding", f"{mode} established", setup)
            yield Row("forwarding", f"{mode} SYN", syns, Kind.SYN)
            if mode is not Mode.FULLNAT:  # whose records of both would not fit in the table
                yield Row("forwarding", f"{mode} UDP", setup, Kind.UDP)
            if mode in {Mode.DSR, Mode.NAT}:
                yield Row("forwarding", f"{mode} established, two-armed", setup, ingress=OUTER)
            if mode.translates:
                yield Row("forwarding", f"{mode} reply, two-armed", setup, to=To.CLIENT)


def _passing() -> Iterator[Row]:
    for mode in (Mode.DSR, Mode.NAT):
        for family in _FAMILIES:
            setup = Setup(mode, family)
            yield Row("others", f"not for a VIP, TCP ({mode})", setup, to=To.NOWHERE)
            yield Row("others", f"not for a VIP, SYN ({mode})", setup, Kind.SYN, To.NOWHERE)
            yield Row("others", f"not for a VIP, UDP ({mode})", setup, Kind.UDP, To.NOWHERE)
            yield Row("others", f"not for a VIP, echo ({mode})", setup, Kind.ECHO, To.NOWHERE)
            yield Row("others", f"echo request to a VIP ({mode})", setup, Kind.ECHO)


def _recorded() -> Iterator[Row]:
    for family in _FAMILIES:
        for algorithm in (Algorithm.ROUND_ROBIN, Algorithm.LEAST_CONNECTIONS):
            yield Row("recorded", f"dsr {algorithm}", Setup(Mode.DSR, family, algorithm))
        client = Setup(Mode.DSR, family, affinity=Affinity.CLIENT_IP)
        yield Row("recorded", "dsr client_ip", client)
        yield Row("recorded", "dsr unsettled slot", Setup(Mode.DSR, family, unsettled=True))
        syns = Setup(Mode.DSR, family, unsettled=True, number=1)
        yield Row("recorded", "dsr unsettled slot, SYN", syns, Kind.SYN)


def _watched() -> Iterator[Row]:
    for mode in (Mode.DSR, Mode.NAT):
        for watched, name in ((False, "not watched"), (True, "watched")):
            setup = Setup(mode, watched=watched)
            yield Row("watched", f"{mode} established, {name}", setup)
            yield Row("watched", f"{mode} SYN, {name}", setup, Kind.SYN)
            if mode.translates:
                yield Row("watched", f"{mode} reply, {name}", setup, to=To.CLIENT)


def _services() -> Iterator[Row]:
    for family in _FAMILIES:
        for mode in (Mode.DSR, Mode.IPIP, Mode.NAT):
            if mode is Mode.IPIP and family != _FAMILIES[0]:
                continue
            yield Row("services", f"{mode}, 1 service", Setup(mode, family))
            many = Setup(mode, family, services=1000)
            yield Row("services", f"{mode}, one of 1,000", many)
            if family == _FAMILIES[0]:
                yield Row("services", f"{mode}, all of 1,000", many, to=To.ALL)


def _generic() -> Iterator[Row]:
    for mode in Mode:
        for family in _FAMILIES:
            yield Row("generic", f"{mode}, specialised", Setup(mode, family))
            yield Row("generic", f"{mode}, generic", Setup(mode, family, generic=True))
            if mode in {Mode.DSR, Mode.NAT}:
                for name, generic in (("specialised", False), ("generic", True)):
                    setup = Setup(mode, family, generic=generic)
                    yield Row("generic", f"not for a VIP ({mode}), {name}", setup, to=To.NOWHERE)


def rows(pattern: str) -> list[list[Row]]:
    """Return the groups of rows whose title matches, each with its baselines."""
    groups = []
    for source in (_forwarding, _passing, _recorded, _watched, _services, _generic):
        wanted = [row for row in source() if re.search(pattern, row.title)]
        if wanted:
            families = {row.setup.family for row in wanted}
            bare = [row for row in _baselines(wanted[0].group) if row.setup.family in families]
            groups.append([*bare, *wanted])
    return groups


class Bench:
    """The harness and the network, shared by all groups."""

    def __init__(self, wire: Wire, harness: Harness, flows: Sequence[str], rounds: int) -> None:
        self._indices = {i.name: i.index for i in wire.topology(1).interfaces.values()}
        self._wire, self._harness = wire, harness
        self._flows, self._rounds = flows, rounds

    def group(self, wanted: Sequence[Row]) -> dict[tuple[str, str], Figure]:
        """Measure one group: row's title and number of flows -> figure."""
        found = {}
        with ExitStack() as closing:
            setups = dict.fromkeys(row.setup for row in wanted)
            built = {s: closing.enter_context(Built(s, self._wire)) for s in setups}
            for label in self._flows:
                cases = [self._case(row, built[row.setup], FLOWS[label]) for row in wanted]
                figures = measure(self._harness, cases, rounds=self._rounds)
                found.update({(title, label): figure for title, figure in figures.items()})
        return found

    def _case(self, row: Row, built: Built, flows: int) -> Case:
        if row.to is To.CLIENT and row.setup.records:
            prime(self._harness, built, flows, self._indices[INNER])
        fd = self._harness.baseline(row.baseline) if row.baseline else built.program_fd
        sent = traffic(built, row.kind, row.to, flows)
        return Case(row.title, fd, sent, self._indices[row.ingress])


def _table(
    group: Sequence[Row], found: dict[tuple[str, str], Figure], flows: Sequence[str]
) -> Table:
    table = Table(title=f"{group[0].group}: ns a packet over the harness, median (min)")
    table.add_column("packet")
    for label in flows:
        table.add_column(f"{label} flows" if label != "1" else "1 flow", justify="right")
    for row in group:
        cells = (found[row.title, label] for label in flows)
        texts = (f"{cell.median_ns:.0f} ({cell.min_ns:.0f})" for cell in cells)
        table.add_row(row.title.split(": ", 1)[1], *texts)
    return table


def _machine() -> dict[str, object]:
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    model = re.search(r"^model name\s*: (.*)$", info, re.MULTILINE)
    return {
        "kernel": platform.release(),
        "cpus": os.cpu_count(),
        "model": model[1] if model else platform.machine(),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "load": os.getloadavg()[0],
    }


def _arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one object instead of tables")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="how often each row is timed")
    parser.add_argument("--cases", default="", metavar="REGEX", help="only rows that match")
    parser.add_argument("--flows", nargs="+", choices=FLOWS, default=list(FLOWS))
    parser.add_argument("--live", action="store_true", help="frames a second as well")
    parser.add_argument("--probes", action="store_true", help="what probes cost, and that only")
    parser.add_argument(
        "--controller", action="store_true", help="the controller's seconds and megabytes instead"
    )
    parser.add_argument("--no-ns", action="store_true", help="frames a second only")
    return parser.parse_args(arguments)


def _controller(options: argparse.Namespace) -> int:
    """Measure the controller alone, and print that."""
    console = Console(width=110, stderr=options.json)
    figures = timing_controller.measure(options.rounds)
    console.print(timing_controller.table(figures))
    console.print(_machine())
    if options.json:
        sys.stdout.write(json.dumps({"machine": _machine(), "controller": figures}) + "\n")
    return 0


def main(arguments: Sequence[str]) -> int:
    """Measure and print."""
    options = _arguments(arguments)
    sandbox.enter()
    if options.controller:
        return _controller(options)
    console = Console(width=110, stderr=options.json)
    if options.probes:
        return _measure_probes(options, console)
    results: list[dict[str, object]] = []
    report: dict[str, object] = {"machine": _machine(), "rounds": options.rounds, "ns": results}
    wire = make_wire()
    try:
        with Harness() as harness:
            bench = Bench(wire, harness, options.flows, options.rounds)
            for group in [] if options.no_ns else rows(options.cases):
                found = bench.group(group)
                console.print(_table(group, found, options.flows))
                results += [
                    {"case": title, "flows": FLOWS[label], **asdict(figure)}
                    for (title, label), figure in found.items()
                ]
    finally:
        wire.close()
    if options.live:
        report["frames_per_s"] = frames = timing_live.measure(options.rounds)
        console.print(timing_live.table(frames))
    console.print(report["machine"])
    if options.json:
        sys.stdout.write(json.dumps(report) + "\n")
    return 0


def _measure_probes(options: argparse.Namespace, console: Console) -> int:
    probes = timing_probes.measure(options.cases)
    console.print(timing_probes.table(probes), _machine())
    if options.json:
        report = {"machine": _machine(), "probes": timing_probes.as_dicts(probes)}
        sys.stdout.write(json.dumps(report) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
