"""A plan in one sentence, for the log: what a cycle changed.

Owns the wording. It refuses to look at anything but the plan.
"""

from __future__ import annotations

from lb_xdp.core.plan import Plan


def plan_sentence(plan: Plan) -> str:
    """Return what a plan changes, as ``2 rings written; 1 backend updated; 211 slots moved``."""
    parts = []
    if plan.build:
        parts.append(f"generation {plan.generation} with {_number(len(plan.rings), 'service')}")
    elif plan.rings:
        parts.append(f"{_number(len(plan.rings), 'ring')} written")
    if plan.records and not plan.build:
        parts.append(f"{_number(len(plan.records), 'backend')} updated")
    if moved := sum(plan.moved.values()):
        parts.append(f"{_number(moved, 'slot')} moved")
    if plan.attach:
        parts.append(f"attached to {', '.join(plan.attach)}")
    if plan.detach:
        parts.append(f"detached from {', '.join(plan.detach)}")
    return "; ".join(parts)


def _number(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
