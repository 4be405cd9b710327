"""The kernel's view of the network, followed by netlink: interfaces, routes, neighbours."""

from lb_xdp.netlink.follow import Follower

__all__ = ["Follower"]
