"""What a generation is made from: endpoint tables laid out, and programs compiled.

Nothing here needs the kernel, so the compiler may begin as soon as a structure is known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lb_xdp.core.desired import BackendId, Structure
from lb_xdp.core.model import ServiceKey
from lb_xdp.core.plan import Plan
from lb_xdp.datapath.addresses import IPV4, to_words
from lb_xdp.datapath.clock import jiffies_per_s
from lb_xdp.datapath.compile import Code, Parameters, compile_gateway, features
from lb_xdp.datapath.endpoints import EndpointTable, build_filter, build_table, build_table6
from lb_xdp.datapath.maps import TableShape, table_dtype
from lb_xdp.datapath.structure import structure_endpoints

_IPV6_BITS = 128
_WORD_BITS = 32


@dataclass(frozen=True, slots=True)
class Blueprint:
    """All of a generation that does not need the kernel, but for records and rings."""

    rings: dict[ServiceKey, int]
    table: EndpointTable
    table6: EndpointTable
    filter: NDArray[np.uint64]
    code: Code

    @property
    def shape(self) -> TableShape:
        """Return the sizes of the endpoint table."""
        parameters = self.code.parameters
        return TableShape(parameters.filter_bits, parameters.bucket_bits, parameters.bucket6_bits)


class _Tables(NamedTuple):
    """The endpoint tables of both IP versions, and the filter before them."""

    table: EndpointTable
    table6: EndpointTable
    filter: NDArray[np.uint64]


def draw(plan: Plan) -> Blueprint:
    """Lay the tables out and compile the programs. Raises CompileError, MapError."""
    rings = {service: index for index, service in enumerate(sorted(plan.structure.services))}
    tables = _lay_out(plan.structure, plan.indices, rings)
    return Blueprint(rings, *tables, _compile(plan.structure, tables))


def compile_ahead(structure: Structure) -> None:
    """Compile what a structure needs, as soon as that is known: ``draw`` then finds it done.

    What the tables hold of backends and rings has no part in their shape.
    """
    anything = dict.fromkeys(structure.backends, 0), dict.fromkeys(structure.services, 0)
    _compile(structure, _lay_out(structure, *anything))


def _lay_out(
    structure: Structure, indices: Mapping[BackendId, int], rings: Mapping[ServiceKey, int]
) -> _Tables:
    endpoints = structure_endpoints(structure, indices, rings)
    return _Tables(
        build_table([e for e in endpoints if e.family == IPV4]),
        build_table6([e for e in endpoints if e.family != IPV4]),
        build_filter(endpoints),
    )


def _compile(structure: Structure, tables: _Tables) -> Code:
    return compile_gateway(
        Parameters(
            features(structure),
            filter_bits=(len(tables.filter) * 64 - 1).bit_length(),
            bucket_bits=tables.table.bucket_bits,
            bucket6_bits=tables.table6.bucket_bits,
            hz=jiffies_per_s(),
        )
    )


def encode_table(structure: Structure, blueprint: Blueprint) -> NDArray[np.void]:
    """Return the one element of the map ``endpoints``."""
    value: NDArray[np.void] = np.zeros(1, dtype=table_dtype(blueprint.shape))
    head, shape = value["head"], blueprint.shape
    sources, snats = structure.tunnel_sources, structure.snat_addresses
    head["build"], head["factor"] = structure.build, blueprint.table.factors[0]
    head["factor6_high"], head["factor6_low"] = blueprint.table6.factors
    head["tunnel_source"] = int(sources.ipv4.network_address)
    head["tunnel_host_mask"] = int(sources.ipv4.hostmask)
    head["tunnel_source6"] = to_words(sources.ipv6.network_address)
    host_bits = min(_IPV6_BITS - sources.ipv6.prefixlen, _WORD_BITS)
    head["tunnel_host_mask6"], head["tunnel_prefix6"] = (1 << host_bits) - 1, sources.ipv6.prefixlen
    head["gue_port"], head["flow_entries"] = structure.gue_port, structure.flow_entries
    head["snats"] = sum(address.version == IPV4 for address in snats)
    head["snats6"] = sum(address.version != IPV4 for address in snats)
    head["filter_bits"], head["bucket_bits"] = shape.filter_bits, shape.bucket_bits
    head["bucket6_bits"], head["hz"] = shape.bucket6_bits, blueprint.code.parameters.hz
    value["filter"] = blueprint.filter
    value["bucket"]["entry"] = blueprint.table.entries
    value["bucket6"]["entry"] = blueprint.table6.entries
    return value
