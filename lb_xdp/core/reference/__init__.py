"""The reference model: what becomes of a packet, in Python, from DESIGN.md's table and the RFCs.

It is slow and plain on purpose, shares no line with the C, and judges it: before a new program is
swapped in, and in tests. What depends on the kernel's tables or on a flow's past it does not guess.
"""

from lb_xdp.core.reference.compare import Found, difference
from lb_xdp.core.reference.describe import describe
from lb_xdp.core.reference.model import Model
from lb_xdp.core.reference.outcome import Outcome

__all__ = ["Found", "Model", "Outcome", "describe", "difference"]
