"""Where a program and the model part ways, in words."""

from __future__ import annotations

from typing import NamedTuple

from lb_xdp.core.reference.describe import describe
from lb_xdp.core.reference.outcome import Outcome
from lb_xdp.core.snapshot import Verdict

_ANSWERS = frozenset({"too_big", "refused", "reset"})
_VERDICTS = {
    "pass": Verdict.PASS,
    "drop": Verdict.DROP,
    "tx": Verdict.FORWARD,
    "redirect": Verdict.FORWARD,
}


class Found(NamedTuple):
    """What a program did: the XDP action in words, the one reason that it counted, the frame."""

    action: str
    reason: str
    frame: bytes


def difference(frame: bytes, ingress: int, expected: Outcome, found: Found) -> str | None:
    """Return what differs, both sides decoded; None where nothing does or nothing is foretold."""
    if expected.unknown or _is_same(ingress, expected, found):
        return None
    lines = [
        f"packet:   {describe(frame)}",
        f"expected: {_headline(expected, ingress)}{_shown(expected.frame_out)}",
        f"found:    {found.action}, {found.reason}{_shown(found.frame)}",
    ]
    out = expected.frame_out
    if out is not None and out != found.frame and expected.reason == found.reason:
        lines.append(f"octets:   {_first_difference(out, found.frame)}")
    return "\n".join(lines)


def _is_same(ingress: int, expected: Outcome, found: Found) -> bool:
    if expected.reason in _ANSWERS and (found.action, found.reason) == ("drop", "unanswered"):
        return True  # this second's answers were spent
    if expected.reason != found.reason or expected.verdict is not _VERDICTS.get(found.action):
        return False
    if expected.verdict is Verdict.DROP:
        return True
    if expected.egress is not None and (expected.egress == ingress) != (found.action == "tx"):
        return False
    return expected.frame_out is None or expected.frame_out == found.frame


def _headline(expected: Outcome, ingress: int) -> str:
    action = str(expected.verdict)
    if expected.verdict is Verdict.FORWARD:
        action = "tx" if expected.egress == ingress else "redirect"
    backend = f", to {expected.backend}" if expected.backend else ""
    return f"{action}, {expected.reason}{backend}"


def _shown(frame: bytes | None) -> str:
    return "" if frame is None else f", {describe(frame)}"


def _first_difference(expected: bytes, found: bytes) -> str:
    at = next(
        (i for i, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b),
        min(len(expected), len(found)),
    )
    return (
        f"at {at}: {expected[at : at + 8].hex(' ')} expected, {found[at : at + 8].hex(' ')} found"
    )
