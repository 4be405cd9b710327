"""Backend records and their limits as they lie in the maps, and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from hashlib import blake2b

import numpy as np

from lb_xdp.core.desired import BackendId, BackendRecord
from lb_xdp.core.model import ANY_PORT, IPV4, IPV6, BackendKey, ServiceKey
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


def encode_records(records: Mapping[BackendId, BackendRecord]) -> Values:
    """Return a ``struct lb_backend`` of each, in their order; column by column, as numpy likes."""
    values = np.zeros(len(records), dtype=layout().structs["lb_backend"])
    columns: dict[str, list[object]] = {
        "address": [to_words(i.backend.address) for i in records],
        "vip": [to_words(i.service.vip) for i in records],
        "port": [i.backend.port for i in records],
        "vip_port": [i.service.port for i in records],
        "mac": [list(record.mac) for record in records.values()],
        "source_mac": [list(record.source_mac) for record in records.values()],
        "ifindex": [record.ifindex for record in records.values()],
        "mtu": [min(record.mtu, _MAX_U16) for record in records.values()],
        "protocol": [i.service.protocol.number for i in records],
        "identity": [identity_of(i) for i in records],
        "flags": [_flags(i, record) for i, record in records.items()],
    }
    for name, column in columns.items():
        values[name] = column
    return values


def _flags(identity: BackendId, record: BackendRecord) -> int:
    flags = sum(_constant(flag) for name, flag in _FLAGS.items() if getattr(record, name))
    flags |= _constant("LB_BACKEND_IPV6") * (identity.backend.address.version == IPV6)
    flags |= _constant("LB_BACKEND_VIP6") * (identity.service.vip.version == IPV6)
    return flags | _constant("LB_BACKEND_ANY_PORT") * (identity.service.port == ANY_PORT)


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
    used = values["identity"] != 0
    keys, values = keys[used], values[used]
    _, allowed = limits.read_all(limit=int(keys.max(initial=0)) + 1)
    identities = _identities(values)
    found = zip(identities, _decode(values, allowed[keys]), strict=True)
    return dict(found), dict(zip(identities, keys.tolist(), strict=True))


def _identities(values: Values) -> list[BackendId]:
    """Return whose each record is. A service's key is made once for all of its backends."""
    ipv6, vip6 = _constant("LB_BACKEND_IPV6"), _constant("LB_BACKEND_VIP6")
    services: dict[tuple[object, ...], ServiceKey] = {}
    found = []
    columns = ("flags", "port", "vip_port", "protocol")
    plain = zip(*(values[name].tolist() for name in columns), strict=True)
    for (flags, port, vip_port, number), address, vip in zip(
        plain, values["address"], values["vip"], strict=True
    ):
        place = (flags & vip6, vip.tobytes(), vip_port, number)
        if place not in services:
            family = IPV6 if flags & vip6 else IPV4
            services[place] = ServiceKey(from_words(vip, family), vip_port, protocol_of(number))
        key = BackendKey(from_words(address, IPV6 if flags & ipv6 else IPV4), port)
        found.append(BackendId(services[place], key))
    return found


def _decode(values: Values, limits: Values) -> Iterator[BackendRecord]:
    masks = [_constant(flag) for flag in _FLAGS.values()]
    columns = [values[name].tolist() for name in ("ifindex", "mac", "source_mac", "mtu", "flags")]
    columns += [limits[name].tolist() for name in ("connections", "resume", "weight")]
    for ifindex, mac, source_mac, mtu, flags, limit, resume, weight in zip(*columns, strict=True):
        bits = dict(zip(_FLAGS, (bool(flags & mask) for mask in masks), strict=True))
        yield BackendRecord(
            ifindex,
            bytes(mac),
            bytes(source_mac),
            mtu,
            limit=limit,
            resume=resume,
            weight=weight,
            **bits,
        )
