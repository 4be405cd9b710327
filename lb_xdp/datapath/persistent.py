"""The maps that outlive every generation: found, taken over from another layout, or made.

Owns where each comes from. What they hold is the callers'.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from lb_xdp.datapath.bpffs import Pins
from lb_xdp.datapath.estate import Estate, write_formats
from lb_xdp.datapath.maps import BpfMap, MapSpec
from lb_xdp.errors import MapError


def open_maps(
    maps: dict[str, BpfMap],
    pins: Pins,
    specs: Iterable[MapSpec],
    estate: Estate | None,
    *,
    replace: bool,
) -> None:
    """Open a gateway's persistent maps into ``maps``, and pin those that are new to this layout.

    Raises MapError for a pin of another shape, unless ``replace`` says to start anew with that map;
    then ``maps`` has those that were opened so far.
    """
    if estate is not None:
        pins.remove_layout(pins.versioned)  # of an upgrade that was cut off
    pins.prepare()
    write_formats(pins)
    for spec in specs:
        path = pins.maps / spec.name
        inherited = estate.maps.get(spec.name) if estate else None
        maps[spec.name] = bpf_map = _open(spec, path, inherited or path, replace=replace)
        if not path.exists():
            bpf_map.pin(path)


def _open(spec: MapSpec, own: Path, path: Path, *, replace: bool) -> BpfMap:
    try:
        return BpfMap.reopen(spec, path)
    except FileNotFoundError:
        return BpfMap.create(spec)
    except MapError:
        if not replace:
            raise
        own.unlink(missing_ok=True)  # another layout's stays, for its program is still in place
        return BpfMap.create(spec)
