"""lb_xdp: an XDP load balancer for Linux gateway hosts, and its controller."""

__version__ = "0.1.0"
