"""Flap damping: a backend that goes up and down too often stays down for a while.

Owns when a backend is held down and for how long. It refuses to know probes and traffic: it is told
of changes of health, and asked whether the backend is held. The idea is RFC 2439's (routes that
flap are suppressed until they have been quiet), in terms that can be read off the configuration:
so many changes within so long, and each time again it is held twice as long.

Times are seconds of whichever clock the caller uses throughout.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from lb_xdp.core.model import Config, Damping
from lb_xdp.core.targets import TargetId, target_of


@dataclass(frozen=True, slots=True)
class FlapState:
    """``changes_s`` are the latest changes; ``holds`` how often in a row it was held."""

    changes_s: tuple[float, ...] = ()
    holds: int = 0
    held_until_s: float = float("-inf")

    def held(self, at_s: float) -> bool:
        """Say whether the backend is held down at a time."""
        return at_s < self.held_until_s


def dampings(config: Config) -> dict[TargetId, Damping]:
    """Return the damping of every target that has one."""
    return {
        target_of(service, backend): service.pool.damping
        for service, backend in config.backends()
        if service.pool.damping is not None
    }


STEADY = FlapState()
"""A backend that has not changed yet."""


def on_change(state: FlapState, damping: Damping, at_s: float) -> FlapState:
    """Return the state after one more change of health, up or down.

    The change that makes ``damping.changes`` within ``damping.within_s`` begins a hold of
    ``hold_s``, the next one twice that, up to ``max_hold_s``. A backend that is held goes on to be
    watched: changes while it is held count towards the next hold. Once it has been free for
    ``max_hold_s`` the row ends, and the next hold is the shortest again.
    """
    if state.holds and at_s - state.held_until_s > damping.max_hold_s:
        state = STEADY
    changes_s = (*(s for s in state.changes_s if at_s - s < damping.within_s), at_s)
    if state.held(at_s) or len(changes_s) < damping.changes:
        return replace(state, changes_s=changes_s[-damping.changes :])
    hold_s = min(damping.hold_s * 2 ** min(state.holds, 30), damping.max_hold_s)
    return FlapState((), state.holds + 1, at_s + hold_s)
