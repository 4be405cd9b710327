"""A slice of the fuzzer: `scripts/fuzz` runs a million packets and more through each variant."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import pace
from tests.support.fuzz import compile_ahead, fuzz
from tests.support.fuzz_variants import Variant, variants
from tests.support.program import Wire

PACKETS = 3000
SEED = 20
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
