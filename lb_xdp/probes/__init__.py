"""Probes: single attempts to reach a backend, and the schedule that repeats them."""

from lb_xdp.probes.prober import Prober, Target

__all__ = ["Prober", "Target"]
