"""What the packet tests share: the network that routes their replies."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.program import Wire


@pytest.fixture(scope="module")
def wire() -> Iterator[Wire]:
    """Provide the two veth pairs, once for the tests of a module."""
    built = Wire()
    yield built
    built.close()
