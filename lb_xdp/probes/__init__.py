"""Probes: single attempts to reach a backend, and the schedule that repeats them."""

from lb_xdp.probes.prober import Prober

__all__ = ["Prober"]
