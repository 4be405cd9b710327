"""Flap damping: a backend that goes up and down too often stays down for a while.

Owns when a backend is held down and for how long. It refuses to know probes and traffic: it is told
of changes of health, and asked whether the backend is held. The idea is RFC 2439's (routes that
flap are suppressed until they have been quiet), in terms that can be read off the configuration:
so many changes within so long, and each time again it is held twice as long.

Times are seconds of whichever clock the caller uses throughout.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from lb_xdp.core.model import Config, Damping
from lb_xdp.core.targets import TargetId, targets_of


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
        target: service.pool.damping
        for service in config.services
        if service.pool.damping is not None
        for target in targets_of(service)
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


class Holds:
    """The targets that flap, and which of them are held down for it; ``now_s`` is the caller's."""

    def __init__(self) -> None:
        self._dampings: Mapping[TargetId, Damping] = {}
        self._flaps: dict[TargetId, FlapState] = {}
        self._held: set[TargetId] = set()

    def adopt(self, config: Config) -> None:
        """Go by a configuration's damping from now on; who still has any keeps its history."""
        self._dampings = dampings(config)
        self._flaps = {t: flaps for t, flaps in self._flaps.items() if t in self._dampings}

    def note_change(self, target: TargetId, now_s: float) -> str:
        """Count a change of health; one too many holds the backend down: return why, else ""."""
        damping = self._dampings.get(target)
        if damping is None:
            return ""
        before = self._flaps.get(target, STEADY)
        self._flaps[target] = after = on_change(before, damping, now_s)
        if after.held_until_s == before.held_until_s:
            return ""
        self._held.add(target)
        return (
            f"{damping.changes} changes of health within {damping.within_s:g} s, held down for "
            f"{after.held_until_s - now_s:g} s"
        )

    @property
    def any(self) -> bool:
        """Whether some target may be held down."""
        return bool(self._held)

    def release(self, now_s: float) -> None:
        """Forget holds that are over."""
        self._held = {t for t in self._held if self.left_s(t, now_s)}

    def left_s(self, target: TargetId, now_s: float) -> float:
        """Return how much longer a target is held down, 0 where it is not."""
        flaps = self._flaps.get(target, STEADY)
        held = target in self._held and flaps.held(now_s)
        return flaps.held_until_s - now_s if held else 0.0

    def ends_s(self) -> list[float]:
        """Return when the holds that there are end."""
        return [self._flaps[t].held_until_s for t in self._held if t in self._flaps]
