"""How much of the time each backend was up, over the last hour, day and 30 days.

Owns the arithmetic from changes of state to shares of time. It refuses to know where changes come
from (the journal, then the reconciler), and what time it is.

Time that says nothing is not counted, neither as up nor as down: before a backend was known, while
its state was unknown, and while the daemon did not run. So a share is of the time that is known;
``known_s`` tells how much that is.

Times are seconds since the Unix epoch. A clock that was set back makes no time negative: what would
end before it began has no length.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from lb_xdp.core.event import Event, EventKind
from lb_xdp.core.snapshot import Share, State

WINDOWS_S: Mapping[str, float] = {"1h": 3600.0, "24h": 86_400.0, "30d": 2_592_000.0}
"""The windows by their names in status, metrics and commands."""

_LONGEST_S = max(WINDOWS_S.values())
_SPANS_MAX = 512
"""Changes kept of one backend; of one that changes more often, older ones are taken together."""

_STATES = frozenset(state.value for state in State)
_GONE = frozenset({EventKind.BACKEND_REMOVED, EventKind.BACKEND_FORGOTTEN})


class BackendName(NamedTuple):
    """Whose history: names of a service and of a backend in it."""

    service: str
    backend: str


@dataclass(slots=True)
class _History:
    """One backend: until when it was known and up for how long, at each change.

    ``ends_s`` are the moments of change, ascending; at each, ``known_s`` and ``up_s`` are totals
    since the history began, so that a window needs two look-ups and no sum.
    """

    state: State = State.UNKNOWN
    since_s: float = 0.0
    ends_s: list[float] = field(default_factory=list)
    known_s: list[float] = field(default_factory=list)
    up_s: list[float] = field(default_factory=list)

    def change(self, state: State, at_s: float) -> None:
        at_s = max(at_s, self.ends_s[-1] if self.ends_s else self.since_s)
        known_s, up_s = self.totals(at_s)
        self.ends_s.append(at_s)
        self.known_s.append(known_s)
        self.up_s.append(up_s)
        self.state, self.since_s = state, at_s
        self._forget(at_s - _LONGEST_S)

    def totals(self, at_s: float) -> tuple[float, float]:
        """Return how long it was known, and up, until then; within a span in proportion."""
        place = bisect_right(self.ends_s, at_s)
        if place == len(self.ends_s):
            return self._latest(at_s)
        if place == 0:
            return self.known_s[0], self.up_s[0]
        begin_s, end_s = self.ends_s[place - 1], self.ends_s[place]
        part = (at_s - begin_s) / (end_s - begin_s)
        known, up = self.known_s, self.up_s
        return (
            known[place - 1] + part * (known[place] - known[place - 1]),
            up[place - 1] + part * (up[place] - up[place - 1]),
        )

    def _latest(self, at_s: float) -> tuple[float, float]:
        """Return the totals in the state that lasts."""
        lasting_s = max(at_s - self.since_s, 0.0) if self.state is not State.UNKNOWN else 0.0
        known_s = self.known_s[-1] if self.known_s else 0.0
        up_s = self.up_s[-1] if self.up_s else 0.0
        return known_s + lasting_s, up_s + lasting_s * (self.state is State.UP)

    def _forget(self, before_s: float) -> None:
        """Drop what no window reaches; of too many changes, every second one of the older half."""
        drop = max(bisect_right(self.ends_s, before_s) - 1, 0)
        for totals in (self.ends_s, self.known_s, self.up_s):
            del totals[:drop]
            if len(totals) > _SPANS_MAX:
                del totals[1 : _SPANS_MAX // 2 : 2]


class Availability:
    """The history of every backend; kept up to date change by change."""

    def __init__(self) -> None:
        self._histories: dict[BackendName, _History] = {}

    def see(self, name: BackendName, state: State, at_s: float) -> bool:
        """Take in the state of a backend from then on; False if that is no change."""
        history = self._histories.setdefault(name, _History(since_s=at_s))
        if history.state is state:
            return False
        history.change(state, at_s)
        return True

    def state(self, name: BackendName) -> State:
        """Return the latest state of a backend."""
        history = self._histories.get(name)
        return history.state if history else State.UNKNOWN

    def stop(self, at_s: float) -> None:
        """Take in that nobody looked from then on."""
        for name in self._histories:
            self.see(name, State.UNKNOWN, at_s)

    def on_event(self, event: Event) -> None:
        """Take in an event; what is not about a backend's state changes nothing."""
        name = BackendName(event.service, event.backend)
        if event.kind is EventKind.BACKEND_STATE and event.after in _STATES:
            self.see(name, State(event.after), event.timestamp_s)
        elif event.kind in _GONE:
            self._histories.pop(name, None)
        elif event.kind in {EventKind.STARTED, EventKind.STOPPED}:
            self.stop(event.timestamp_s)

    def replay(self, events: Iterable[Event], last_alive_s: float) -> None:
        """Take in what a journal holds of earlier lives.

        ``last_alive_s`` is when the latest of them was last seen to live: it may have ended without
        a word. Of those before it the same is unknown; their last event counts as their end.
        """
        latest_s = 0.0
        for event in events:
            if event.kind is EventKind.STARTED:
                self.stop(latest_s)
            self.on_event(event)
            latest_s = event.timestamp_s
        self.stop(max(latest_s, last_alive_s))

    def share(self, name: BackendName, window_s: float, now_s: float) -> Share | None:
        """Return the part of a window in which a backend was up; None where nothing is known."""
        history = self._histories.get(name)
        if history is None:
            return None
        return _share(history.totals(now_s - window_s), history.totals(now_s))

    def shares(self, name: BackendName, now_s: float) -> dict[str, Share]:
        """Return the shares of all windows in which something is known."""
        history = self._histories.get(name)
        if history is None:
            return {}
        found: dict[str, Share] = {}
        begins = ends = history.totals(now_s)
        share: Share | None = None
        for window, window_s in WINDOWS_S.items():
            earlier = history.totals(now_s - window_s)
            if earlier != begins:  # else nothing is known of the time between
                begins, share = earlier, _share(earlier, ends)
            if share is not None:
                found[window] = share
        return found


def _share(begins: tuple[float, float], ends: tuple[float, float]) -> Share | None:
    """Return the share between two moments, given how long one was known, and up, until each."""
    known_s = ends[0] - begins[0]
    if known_s <= 0:
        return None
    return Share(min(max((ends[1] - begins[1]) / known_s, 0.0), 1.0), known_s)
