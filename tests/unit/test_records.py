"""Records of backends: many are written as each alone would be, and read back as they were."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Address, IPv6Address
from typing import cast

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lb_xdp.core.desired import BackendId, BackendRecord
from lb_xdp.core.model import BackendKey, Protocol, ServiceKey
from lb_xdp.datapath.layout import layout
from lb_xdp.datapath.maps import BpfMap, Values
from lb_xdp.datapath.records import encode_records, identity_of, read_records

ADDRESSES = st.integers(0, 2**32 - 1).map(IPv4Address) | st.integers(0, 2**128 - 1).map(IPv6Address)
PORTS = st.integers(0, 65_535)
MACS = st.binary(min_size=6, max_size=6)
IDENTITIES = st.builds(
    BackendId,
    st.builds(ServiceKey, ADDRESSES, PORTS, st.sampled_from(Protocol)),
    st.builds(BackendKey, ADDRESSES, PORTS),
)
RECORDS = st.builds(
    BackendRecord,
    ifindex=st.integers(0, 2**31 - 1),
    mac=MACS,
    source_mac=MACS,
    mtu=st.integers(0, 65_535),
    **dict.fromkeys(("up", "shared", "no_new", "tracked", "watched"), st.booleans()),
    **dict.fromkeys(("limit", "resume", "weight"), st.integers(0, 2**31 - 1)),
)


class Shelf:
    """Values that lie in no kernel."""

    def __init__(self, values: Values) -> None:
        self._values = values

    def read_all(self, limit: int | None = None) -> tuple[Values, Values]:
        found = self._values[:limit]
        return np.arange(len(found), dtype=np.uint32), found


def read_back(records: Mapping[BackendId, BackendRecord]) -> object:
    """Return what the next controller reads of records at the indices 1, 2, 3..."""
    held = layout().structs["lb_backend"], layout().structs["lb_limit"]
    backends, limits = (np.zeros(len(records) + 2, dtype) for dtype in held)
    backends[1:-1] = encode_records(records)
    for value, record in zip(limits[1:-1], records.values(), strict=True):
        value["connections"], value["resume"] = record.limit, record.resume
        value["weight"] = record.weight
    return read_records(cast("BpfMap", Shelf(backends)), cast("BpfMap", Shelf(limits)))


@settings(max_examples=60)
@given(st.dictionaries(IDENTITIES, RECORDS, max_size=12))
def test_records_read_back_as_they_were_written(records: dict[BackendId, BackendRecord]) -> None:
    """Whose each is, what it says and its index; elements that nobody has written are nobody's."""
    indices = {identity: number for number, identity in enumerate(records, 1)}
    assert read_back(records) == (records, indices)


@settings(max_examples=60)
@given(st.dictionaries(IDENTITIES, RECORDS, min_size=1, max_size=12))
def test_many_are_written_as_each_alone(records: dict[BackendId, BackendRecord]) -> None:
    """By itself, a record and its backend's 32 bits are what they are among others."""
    written = encode_records(records)
    alone = [encode_records({identity: record}) for identity, record in records.items()]
    assert written.tobytes() == b"".join(one.tobytes() for one in alone)
    assert written["identity"].tolist() == [identity_of(identity) for identity in records]
