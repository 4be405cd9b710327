"""A slice of the fuzzer: `scripts/fuzz` runs a million packets and more through each variant."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from lb_xdp.datapath import syscall
from tests.support import pace
from tests.support.fuzz import Rig, compile_ahead, fuzz
from tests.support.fuzz_variants import Variant, variants
from tests.support.program import Wire

PACKETS = 3000
SEED = 20
VERIFIER_STEPS = 1_000_000
ESSENTIAL = frozenset({"dsr4", "ipip6", "gue4", "nat4", "nat6", "fullnat4", "tracked", "all"})
"""Each mode, both IP versions, and everything at once: for an emulated machine, where the compiler
takes a minute for one."""

CHOSEN = [one for one in variants() if pace.SLOWNESS == 1 or one.name in ESSENTIAL]


@pytest.fixture(scope="module", autouse=True)
def _compiled(wire: Wire, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Compile all variants side by side: one after the other would take a minute."""
    with pytest.MonkeyPatch.context() as patch:
        folder: Path = tmp_path_factory.mktemp("compiled")
        patch.setenv("LB_XDP_COMPILE_CACHE", str(folder))
        compile_ahead(wire, tuple(CHOSEN))
        yield


@pytest.mark.parametrize("variant", CHOSEN, ids=lambda variant: variant.name)
def test_every_packet_ends_as_the_table_says(wire: Wire, variant: Variant) -> None:
    """Spoilt packets get one reason and its verdict each, and leave untouched or well formed."""
    tally = fuzz(wire, variant, PACKETS, SEED)
    assert not tally.complaints, "\n".join(tally.complaints)
    assert sum(tally.reasons.values()) == tally.packets >= PACKETS
    assert tally.reasons["forwarded"] > 0
    assert tally.foretold > 0


@pytest.mark.parametrize("variant", CHOSEN, ids=lambda variant: variant.name)
def test_the_verifier_accepts_every_variant(wire: Wire, variant: Variant) -> None:
    """Every program of it loads, far below the million steps that the verifier allows.

    With pytest's -s it prints the rows of the table in docs/kernels.md.
    """
    started_s = time.monotonic()
    with Rig(wire, variant) as rig:
        took_s = time.monotonic() - started_s
        programs = [syscall.program_info(fd) for fd in opened(rig)]
    sys.stdout.write(f"\n{variant.name}: loaded in {took_s:.1f} s\n")
    for program in programs:
        sys.stdout.write(
            f"| {variant.name} | `{program.name}` | {program.instructions:,} "
            f"| {program.jited_bytes:,} | {program.verified_instructions:,} |\n"
        )
        assert 0 < program.verified_instructions < VERIFIER_STEPS * 3 / 4, program


def opened(rig: Rig) -> Iterator[int]:
    """Yield a descriptor of each program of a variant while it is being looked at."""
    yield rig.generation.program.fd
    table, program_id = rig.generation.maps["programs"], np.zeros(1, np.uint32)
    for place in range(table.spec.max_entries):
        if not syscall.map_lookup(table.fd, np.array([place], np.uint32), program_id):
            continue
        descriptor = syscall.program_open(int(program_id[0]))
        try:
            yield descriptor
        finally:
            os.close(descriptor)
