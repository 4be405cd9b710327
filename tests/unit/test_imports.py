"""Imports go one way: the shape of the program, read from the source and not from good will."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

PACKAGE = "lb_xdp"
ROOT = Path(__file__).parents[2]

CORE = {"errors", "core"}

# Who may import whom inside lb_xdp. The longest matching name on the left rules; its own part is
# always allowed. Adapters are the rows that allow CORE alone: they never see each other.
MAY_IMPORT: Mapping[str, set[str]] = {
    "errors": set(),
    "core": {"errors"},
    "config": CORE,
    "datapath": CORE,
    "netlink": CORE,
    "probes": CORE,
    "via": CORE,
    "metrics": CORE,
    "api": CORE,
    "api.server": CORE | {"reconciler"},
    "witness": CORE,
    "reconciler": CORE | {"witness"},
    "disk": set(),
    "store": CORE | {"disk"},
    "layers": CORE | {"reconciler", "store", "witness"},
    "collector": CORE | {"reconciler"},
    "watcher": CORE | {"reconciler", "witness"},
    "reporter": CORE | {"reconciler"},
    "native": CORE,
    "ring_book": CORE | {"disk"},
    "journal": CORE,
    "chronicle": CORE | {"journal", "witness"},
    "instance": {"errors"},
    "supervisor": set(),
    "resolver": CORE,
    "address_book": CORE | {"disk"},
    "naming": CORE | {"resolver", "address_book"},
    "turns": {"errors"},
    "probing": CORE | {"reconciler"},
    "passage": CORE | {"config", "probing", "reconciler", "turns"},
    "pending": CORE | {"config", "store"},
    "ledger": CORE | {"pending"},
    "live_flows": CORE | {"reconciler"},
    "changes": CORE
    | {"ledger", "naming", "passage", "pending"}
    | {"supervisor", "turns", "witness"},
    "confirmation": CORE | {"changes", "ledger", "pending", "turns", "witness"},
    "forecast": CORE
    | {"changes", "config", "ledger", "live_flows"}
    | {"naming", "passage", "reconciler", "turns"},
    "cycles": CORE | {"layers", "probing", "reconciler", "reporter", "supervisor", "turns"},
    "control": CORE
    | {"changes", "chronicle", "confirmation", "forecast", "layers", "ledger", "live_flows"}
    | {"naming", "probing", "reconciler", "reporter", "turns"},
    "daemon": CORE
    | {"config", "collector", "reconciler", "reporter", "instance", "supervisor", "turns"}
    | {
        "changes",
        "forecast",
        "ledger",
        "live_flows",
        "passage",
        "pending",
        "probing",
        "confirmation",
    }
    | {"layers", "naming", "store", "witness", "native", "journal", "chronicle", "watcher"}
    | {"ring_book", "control", "cycles"}
    | {"datapath", "netlink", "probes", "via", "metrics", "api"},
    "cli": CORE | {"config", "api.client", "api.connection"},
    "cli.bench": CORE | {"datapath"},
    "cli.plan": CORE | {"api.client", "datapath"},
    "cli.decap": CORE | {"datapath"},
    "cli.run": CORE | {"config", "api.client", "daemon"},
    "cli.detach": CORE | {"config", "api.client", "daemon"},
    "__main__": {"cli"},
}

# Libraries that stay in one part, and those that are for tests alone.
ONLY_IN: Mapping[str, str] = {"bcc": "datapath", "pydantic": "config"}
TESTS_ONLY = {"scapy", "hypothesis", "jsonschema", "pytest"}

# core is pure: the standard library without what reaches out, and these exceptions with reasons.
REACHING_OUT = {
    *("asyncio", "concurrent", "ctypes", "fcntl", "io", "logging", "mmap", "multiprocessing", "os"),
    *("pathlib", "random", "secrets", "select", "selectors", "shutil", "signal", "socket"),
    *("subprocess", "tempfile", "threading", "time", "urllib"),
}
CORE_LIBRARIES: Mapping[str, set[str]] = {
    "core.ring": {"numpy"},  # 65,537 slots must be filled in milliseconds
    "core.plan": {"numpy"},  # it compares whole rings, which are arrays
    "core.settle": {"numpy"},  # the same, slot by slot
    "core.compact": {"numpy"},  # rings by the thousand, in few bytes
    "core.proof": {"numpy"},  # it digests their slots
    "core.tally": {"numpy"},  # it counts slots
    "core.collect": {"numpy"},  # hundreds of thousands of flow records at a time
    "core.flow_hash": {"numpy"},  # the same
    "core.flow_list": {"numpy"},  # the same
    "core.touched": {"numpy"},  # whole rings, and the flows on their slots
}


def part_of(path: Path) -> str:
    """Return the module's name inside the package: ``core.ring``, ``core.__init__``."""
    return ".".join(path.relative_to(ROOT / PACKAGE).with_suffix("").parts)


def imported(source: str, importer: str) -> Iterator[str]:
    """Yield what a module imports, wherever in it, as dotted names: ``lb_xdp.core.ring.maglev``."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = [PACKAGE, *importer.split(".")][: -node.level] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def within(name: str, part: str) -> bool:
    return name == part or name.startswith(f"{part}.")


def own_part(importer: str) -> str:
    """Return the row of ``MAY_IMPORT`` that rules a module."""
    return max((part for part in MAY_IMPORT if within(importer, part)), key=len, default="")


def breaches(source: str, importer: str) -> list[str]:
    """Return a sentence for each import of a module that breaks a rule."""
    return [
        f"{importer} imports {name}: {why}"
        for name in imported(source, importer)
        if (why := breach_inside(name, importer) or breach_outside(name, importer))
    ]


def breach_inside(name: str, importer: str) -> str:
    target = name.removeprefix(f"{PACKAGE}.")
    if not within(name, PACKAGE) or target in {PACKAGE, "__version__"}:
        return ""
    row = own_part(importer)
    if not row:
        return "no row of MAY_IMPORT rules this module: add one"
    allowed = MAY_IMPORT[row] | {importer.split(".", maxsplit=1)[0]}
    return "" if any(within(target, part) for part in allowed) else f"{row} may not"


def breach_outside(name: str, importer: str) -> str:
    library = name.split(".", maxsplit=1)[0]
    if library == PACKAGE:
        return ""
    if library in TESTS_ONLY:
        return "it is for tests"
    if library in ONLY_IN and not within(importer, ONLY_IN[library]):
        return f"only {ONLY_IN[library]} may"
    if not within(importer, "core") or library in CORE_LIBRARIES.get(importer, set()):
        return ""
    pure = library in sys.stdlib_module_names and library not in REACHING_OUT
    return "" if pure else "core is pure, and uses the standard library alone"


MODULES = sorted((ROOT / PACKAGE).rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    """Every module keeps to its row of the table above."""
    assert not breaches(path.read_text(), part_of(path))


def test_bcc_is_imported_in_one_file() -> None:
    """The compiler's child process alone knows bcc: it can crash, leak and change directory."""
    users = [
        path.name
        for path in MODULES
        if any(within(name, "bcc") for name in imported(path.read_text(), part_of(path)))
    ]
    assert len(users) == 1, users


@pytest.mark.parametrize(
    ("importer", "line"),
    [
        ("core.plan", "import asyncio"),
        ("core.health", "import numpy as np"),
        ("core.ring", "from lb_xdp.datapath import maps"),
        ("core.ring", "def late():\n    import lb_xdp.config"),
        ("errors", "from lb_xdp.core.model import Config"),
        ("config.load", "from lb_xdp.api import client"),
        ("probes.http", "from lb_xdp.netlink.links import Links"),
        ("probes.http", "from ..netlink import links"),
        ("probes.http", "from lb_xdp import metrics"),
        ("metrics.web", "from lb_xdp.reconciler import Reconciler"),
        ("api.client", "from lb_xdp.reconciler import Reconciler"),
        ("reconciler", "from lb_xdp.datapath.maps import Maps"),
        ("reconciler", "from lb_xdp.store import Store"),
        ("cli.status", "from lb_xdp.api.server import Server"),
        ("cli.status", "from lb_xdp.daemon import run"),
        ("cli.status", "from bcc import BPF"),
        ("api.server", "from pydantic import BaseModel"),
        ("datapath.testrun", "from scapy.all import Ether"),
        ("novelty", "from lb_xdp.core.model import Config"),
    ],
)
def test_bad_import_is_caught(importer: str, line: str) -> None:
    """The check itself sees what it is for, in every spelling."""
    assert len(breaches(line, importer)) == 1


@pytest.mark.parametrize(
    ("importer", "line"),
    [
        ("core.ring", "import numpy as np\nfrom .model import BackendKey"),
        ("core.plan", "from dataclasses import dataclass\nfrom lb_xdp.errors import LbError"),
        ("config.load", "import pydantic, os\nfrom lb_xdp.core import model"),
        ("api.server", "from lb_xdp.reconciler import Reconciler\nfrom lb_xdp.api.wire import x"),
        ("cli.status", "from lb_xdp import __version__\nfrom lb_xdp.api.client import Client"),
        ("cli.run", "from lb_xdp import daemon"),
        ("daemon", "from lb_xdp.datapath.maps import Maps\nimport lb_xdp.probes.http"),
    ],
)
def test_good_imports_pass(importer: str, line: str) -> None:
    """What the shape asks for is allowed."""
    assert not breaches(line, importer)
