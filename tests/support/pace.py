"""How slow the machine is that tests and demo run on: LB_XDP_TEST_SLOWNESS, 1 if unset.

scripts/vm-test sets it where a machine is emulated. Then waits and limits of time are that many
times longer and rates as many times lower, the interval of probes included. Nothing else gives:
what may fail, break or move is the same.
"""

from __future__ import annotations

import os

SLOWNESS = float(os.environ.get("LB_XDP_TEST_SLOWNESS", "1"))


def lasting(seconds: float) -> float:
    """Return how long something takes here that takes ``seconds`` on a common machine."""
    return seconds * SLOWNESS


def rate(per_s: float) -> float:
    """Return what is left here of a rate that a common machine keeps up."""
    return per_s / SLOWNESS
