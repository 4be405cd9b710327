"""Carries probes the way that clients' packets go: to the VIP, through the mode, to one backend."""

from lb_xdp.via.courier import Courier

__all__ = ["Courier"]
