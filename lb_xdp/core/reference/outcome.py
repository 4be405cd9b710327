"""What the reference model says of a packet."""

from __future__ import annotations

from dataclasses import dataclass

from lb_xdp.core.desired import BackendId
from lb_xdp.core.snapshot import Verdict


@dataclass(frozen=True, slots=True)
class Outcome:
    """What becomes of a packet, as far as that can be told.

    ``frame_out`` None: a frame is sent whose octets the model does not foretell (it answers for the
    gateway). ``egress`` is the index of the interface that a forwarded frame leaves by, ``backend``
    who gets it. With ``unknown``, a clause that says why, only ``among`` may be set besides: the
    backends of which it is one.
    """

    verdict: Verdict | None = None
    reason: str = ""
    frame_out: bytes | None = None
    backend: BackendId | None = None
    egress: int | None = None
    unknown: str = ""
    among: tuple[BackendId, ...] = ()


class UndecidedError(Exception):
    """The packet alone does not tell: some state of the kernel's or of a flow's does.

    ``among`` are the backends of which that state picks one, where it picks a backend.
    """

    def __init__(self, why: str, among: tuple[BackendId, ...] = ()) -> None:
        super().__init__(why)
        self.among = among


def passed(reason: str, frame: bytes) -> Outcome:
    """Return the outcome of a packet that goes on to the kernel, untouched."""
    return Outcome(Verdict.PASS, reason, frame)


def dropped(reason: str) -> Outcome:
    """Return the outcome of a packet that goes nowhere."""
    return Outcome(Verdict.DROP, reason)


def answered(reason: str, ingress: int, frame: bytes | None = None) -> Outcome:
    """Return the outcome of a packet that the gateway itself answers, by the way it came."""
    return Outcome(Verdict.FORWARD, reason, frame, egress=ingress)
