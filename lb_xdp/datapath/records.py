"""Backend records and their limits as they lie in the maps, and back."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b

import numpy as np

from lb_xdp.core.desired import BackendId, BackendRecord
from lb_xdp.core.model import ANY_PORT, BackendKey, ServiceKey
from lb_xdp.datapath.addresses import from_words, to_words
from lb_xdp.datapath.layout import layout
from lb_xdp.datapath.maps import BpfMap, Values
from lb_xdp.datapath.structure import protocol_of

_FLAGS = {
    "up": "LB_BACKEND_UP",
    "shared": "LB_BACKEND_SHARED",
    "no_new": "LB_BACKEND_NO_NEW",
    "tracked": "LB_BACKEND_TRACKED",
    "watched": "LB_BACKEND_WATCHED",
}
_MAX_U16 = 0xFFFF


def _constant(name: str) -> int:
    return layout().constants[name]


def identity_of(identity: BackendId) -> int:
    """Return the 32 bits by which a record of a flow knows its backend again; never 0."""
    digest = blake2b(str(identity).encode(), digest_size=4, person=b"lb-xdp backend").digest()
    return int.from_bytes(digest) | 1


def encode_record(identity: BackendId, record: BackendRecord) -> Values:
    """Return a ``struct lb_backend``."""
    flags = sum(_constant(flag) for name, flag in _FLAGS.items() if getattr(record, name))
    address, vip = identity.backend.address, identity.service.vip
    flags |= _constant("LB_BACKEND_IPV6") * (address.version == 6)  # noqa: PLR2004 - IP version
    flags |= _constant("LB_BACKEND_VIP6") * (vip.version == 6)  # noqa: PLR2004 - IP version
    flags |= _constant("LB_BACKEND_ANY_PORT") * (identity.service.port == ANY_PORT)
    value = np.zeros((), dtype=layout().structs["lb_backend"])
    value["address"], value["port"] = to_words(address), identity.backend.port
    value["vip"], value["vip_port"] = to_words(vip), identity.service.port
    value["mac"], value["source_mac"] = list(record.mac), list(record.source_mac)
    value["ifindex"], value["mtu"] = record.ifindex, min(record.mtu, _MAX_U16)
    value["protocol"], value["flags"] = identity.service.protocol.number, flags
    value["identity"] = identity_of(identity)
    return value


def write_limit(limits: BpfMap, index: int, record: BackendRecord) -> None:
    """Write what a backend is allowed. What has expired is the collector's and stays."""
    with limits.edit(index) as held:
        held["connections"], held["resume"] = record.limit, record.resume
        held["weight"] = record.weight


def write_limits(limits: BpfMap, records: Mapping[int, BackendRecord]) -> None:
    """Write what backends are allowed, by index, where that is another than before."""
    if not records:
        return
    _, held = limits.read_all(limit=max(records) + 1)
    names = ("connections", "resume", "weight")
    allowed = np.stack([held[name] for name in names], axis=1).tolist()
    for index, record in records.items():
        if allowed[index] != [record.limit, record.resume, record.weight]:
            write_limit(limits, index, record)


def read_records(
    backends: BpfMap, limits: BpfMap
) -> tuple[dict[BackendId, BackendRecord], dict[BackendId, int]]:
    """Return every record of a generation, and its index."""
    keys, values = backends.read_all()
    used = np.flatnonzero(values["identity"]).tolist()
    _, allowed = limits.read_all(limit=max(used, default=0) + 1)
    records, indices = {}, {}
    for at in used:
        identity = _identity(values[at])
        indices[identity] = int(keys[at])
        records[identity] = _decode(values[at], allowed[at])
    return records, indices


def _identity(value: Values) -> BackendId:
    flags = int(value["flags"])
    vip_family = 6 if flags & _constant("LB_BACKEND_VIP6") else 4
    family = 6 if flags & _constant("LB_BACKEND_IPV6") else 4
    service = ServiceKey(
        from_words(value["vip"], vip_family),
        int(value["vip_port"]),
        protocol_of(int(value["protocol"])),
    )
    address = from_words(value["address"], family)
    return BackendId(service, BackendKey(address, int(value["port"])))


def _decode(value: Values, limit: Values) -> BackendRecord:
    flags = {name: bool(value["flags"] & _constant(flag)) for name, flag in _FLAGS.items()}
    return BackendRecord(
        ifindex=int(value["ifindex"]),
        mac=bytes(value["mac"].tolist()),
        source_mac=bytes(value["source_mac"].tolist()),
        mtu=int(value["mtu"]),
        limit=int(limit["connections"]),
        resume=int(limit["resume"]),
        weight=int(limit["weight"]),
        **flags,
    )
