"""What a version of lb_xdp with another map layout left, and what of it this version goes on with.

    <bpffs>/lb-xdp/<gateway>/v<layout>/formats/<map>   a symbolic link; its target is the format

A format says all that the bytes of a map mean: its type, the fields of key and value, and the
constants that stand in them. Where an older version's map has the format that this version would
give it, both mean the same, and this version pins that very map as its own: nothing is copied,
nothing is lost, and the old program may write to it until its interface runs the new one. Constants
may have been added since; all else has to be equal. What is new in meaning must be new in name.

This module owns the formats and the comparison. It changes nothing of what another version left.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np

from lb_xdp.datapath import syscall
from lb_xdp.datapath.bpffs import Pins
from lb_xdp.datapath.generation import PROGRAM
from lb_xdp.datapath.layout import layout
from lb_xdp.datapath.maps import MapSpec, TableShape, generation_specs, persistent_specs

_ANY_SHAPE: Final = TableShape(6, 6, 6)
_SEPARATOR: Final = " with "
_CONSTANTS: Final = {
    "endpoints": ("LB_KIND_", "LB_SERVICE_", "LB_SCHEDULE_", "LB_ADDRESS_", "LB_BUCKET_"),
    "backends": ("LB_BACKEND_",),
    "rings": ("LB_SLOT_",),
    "flows": ("LB_FLOW_",),
    "returns": ("LB_FLOW_",),
    "nat_flows": ("LB_FLOW_",),
    "fragments": ("LB_FRAGMENT_",),
}
_TOLD: Final = {
    "counts": "counters of backends",
    "reasons": "counters of reasons",
    "flow_counts": "counters of flows",
    "flows": "flow records",
    "returns": "flow records of fullnat",
    "affinities": "affinities of clients",
    "limits": "connection counts",
    "active": "connection counts",
    "nat_flows": "records of direct nat flows",
    "nat_marks": "records of direct nat flows",
    "watched": "counters of handshakes",
}
"""What is lost with a map; of the others nobody would miss anything."""
_TO_READ: Final = ("endpoints", "backends", "rings", "snats")
"""Without these an index means nothing, and so do the maps that go by it."""


@dataclass(frozen=True, slots=True)
class Estate:
    """What the folder of another layout holds for this version.

    ``maps`` are pins to go on with, by name. ``generation`` is the number of the one to be read;
    None where its format is another: then nothing at all can be gone on with. ``lost`` says in
    words what starts anew.
    """

    folder: Path
    generation: int | None
    maps: dict[str, Path]
    lost: tuple[str, ...]

    def refusal(self, pins: Pins) -> str:
        """Return why a start that would lose something is refused, and what to do."""
        return (
            f"{self.folder}: pins of another layout than {pins.versioned.name}: made by another "
            f"version of lb_xdp. Forwarding goes on with that version. What would be lost: "
            f"{', '.join(self.lost)}. `lb-xdp run --replace` takes over all the same, without a "
            f"gap; `lb-xdp --name {pins.gateway} detach` stops it and removes them"
        )


@cache
def formats() -> dict[str, str]:
    """Return the format of each map of this version."""
    specs = (*generation_specs(1, _ANY_SHAPE), *persistent_specs(1, 0))
    return {spec.name: _format(spec) for spec in specs}


def _format(spec: MapSpec) -> str:
    bytes_mean = f"{spec.kind.name} {_fields(spec.key)} {_fields(spec.value)}"
    if spec.name == "reasons":
        bytes_mean += " " + ",".join(reason.name for reason in layout().reasons)
    prefixes = _CONSTANTS.get(spec.name, ())
    constants = (
        f"{n}={v}" for n, v in sorted(layout().constants.items()) if n.startswith(prefixes)
    )
    return bytes_mean + _SEPARATOR + (",".join(constants) if prefixes else "")


def _fields(dtype: np.dtype[Any]) -> str:
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        return f"{_fields(base)}*{'*'.join(map(str, shape))}"
    if dtype.fields is None:
        return dtype.str
    parts = (f"{name}@{at[1]}:{_fields(at[0])}" for name, at in dtype.fields.items())
    return "{" + ",".join(parts) + "}"


def means_the_same(former: str, present: str) -> bool:
    """Say whether what was written in a former format reads the same in the present one."""
    (bytes_then, _, names_then), (bytes_now, _, names_now) = (
        text.partition(_SEPARATOR) for text in (former, present)
    )
    return bytes_then == bytes_now and set(names_then.split(",")) <= {*names_now.split(","), ""}


def write_formats(pins: Pins) -> None:
    """Say beside this version's pins what they mean, for the versions to come."""
    pins.formats.mkdir(mode=0o700, exist_ok=True)
    for name, text in formats().items():
        with suppress(FileExistsError):
            os.symlink(text, pins.formats / name)  # noqa: PTH211 - its target is no path


def _same_formats(folder: Path) -> set[str]:
    """Return the maps of another layout's folder that mean what they would mean here."""
    same = set()
    for name, present in formats().items():
        with suppress(OSError):
            former = os.readlink(folder / "formats" / name)  # noqa: PTH115 - its target is no path
            if means_the_same(former, present):
                same.add(name)
    return same


def find_estate(pins: Pins, running: Collection[int]) -> Estate | None:
    """Return what another layout left, None where this one's own generation is in force.

    ``running`` are the programs on the gateway's interfaces. Of several layouts the one counts
    that forwards; where none does, the present one goes before others, and newer before older.
    """
    folders = (pins.versioned, *sorted(pins.other_layouts(), key=_version, reverse=True))
    complete = [(folder, *found) for folder in folders for found in _programs(folder)]
    in_force = [entry for entry in complete if entry[2] in running] or complete[:1]
    if not in_force or in_force[0][0] == pins.versioned:
        return None
    folder = in_force[0][0]
    number = max(number for there, number, _ in in_force if there == folder)
    there = {path.name: path for path in folder.glob("maps/*")}
    same = _same_formats(folder)
    if not same.issuperset(_TO_READ):
        return Estate(folder, None, {}, _told(there))
    kept = {name: path for name, path in there.items() if name in same}
    return Estate(folder, number, kept, _told(there.keys() - kept.keys()))


def _version(folder: Path) -> int:
    number = folder.name.removeprefix("v")
    return int(number) if number.isdigit() else -1


def _told(names: Collection[str]) -> tuple[str, ...]:
    """Say in words what is lost with maps; one that this version has no use for has no words."""
    known = (words for name, words in _TOLD.items() if name in names)
    strange = (f"map {name}" for name in sorted(set(names) - formats().keys()))
    return tuple(dict.fromkeys([*known, *strange]))


def _programs(folder: Path) -> Iterator[tuple[int, int]]:
    """Yield number and program id of the complete generations in a folder."""
    for path in sorted(folder.glob("gen-*"), reverse=True):
        with suppress(OSError):
            fd = syscall.open_pin(str(path / PROGRAM))
            try:
                yield int(path.name.removeprefix("gen-")), syscall.program_info(fd).id
            finally:
                os.close(fd)
