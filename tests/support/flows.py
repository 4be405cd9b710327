"""Flow records as arrays, laid out as the kernel holds them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from lb_xdp.core.model import IPV4, Address
from lb_xdp.datapath.layout import layout

Flow = tuple[Address, Address, int, int, int]
"""Source, destination, source port, destination port, protocol number."""


def flow_keys(flows: Sequence[Flow]) -> npt.NDArray[np.void]:
    """Return an array of ``struct lb_flow_key``."""
    keys: npt.NDArray[np.void] = np.zeros(len(flows), layout().structs["lb_flow_key"])
    for key, (source, destination, sport, dport, protocol) in zip(keys, flows, strict=True):
        key["source"], key["destination"] = _words(source), _words(destination)
        key["source_port"], key["destination_port"] = sport, dport
        key["protocol"], key["family"] = protocol, source.version
    return keys


def _words(address: Address) -> list[int]:
    if address.version == IPV4:
        return [int(address), 0, 0, 0]
    return [int(address) >> shift & 0xFFFF_FFFF for shift in (96, 64, 32, 0)]
