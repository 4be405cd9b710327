"""A controller without a gateway: it shows a snapshot, keeps overrides, and counts what it is told.

It refuses as the daemon does: by our errors, with nothing changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lb_xdp.core.event import Event, EventFilter, EventKind
from lb_xdp.core.flow_list import BackendFlows, Flow, FlowList, FlowState, Wanted
from lb_xdp.core.override import Override, Overrides, Subject
from lb_xdp.core.preview import (
    Preview,
    ServiceChange,
    ServicePreview,
    Setting,
    WeightChange,
)
from lb_xdp.core.snapshot import Snapshot
from lb_xdp.core.touched import Basis, FlowsTouched
from lb_xdp.core.wish import Match, Outcome, ReloadWish, ServiceMoved, refuse_stale, revision
from lb_xdp.errors import ConfigProblem, InvalidConfigError, LbError, NotNowError, TooMuchMovedError
from tests.support.snapshots import NOW_S, SNAPSHOT

FLOWS = tuple(
    Flow("web", "web1", "tcp", "192.0.2.7", port, "203.0.113.10", 80, FlowState.OPEN, 3)
    for port in (40_000, 40_001, 40_002)
)
PREVIEW = Preview(
    source="/etc/lb-xdp/gw1.yaml",
    revision="",
    services=(
        ServicePreview(
            name="web",
            address="203.0.113.10:80/tcp",
            change=ServiceChange.CHANGED,
            added=("web4",),
            removed=(),
            weights=(WeightChange("web2", 200, 100),),
            settings=(Setting("health.interval", "2s", "1s"),),
            slots=65_537,
            moved_slots=6_553,
            moved_share=6_553 / 65_537,
            flows=FlowsTouched(12, 0, Basis.RECORDED, "every flow is recorded: 120 now"),
        ),
    ),
    unchanged=1,
    settings=(Setting("gateway.gue_port", "6080", "6081"),),
    generation=True,
    restart=None,
    moved_slots=6_553,
    moved_share_max=6_553 / 65_537,
    not_up=("web/web4",),
)
EVENTS = (
    Event(EventKind.STARTED, 1_700_000_000.0, cause="version 0.1.0", number=7),
    Event(
        EventKind.BACKEND_STATE,
        1_700_000_060.25,
        "web",
        "web2",
        "up",
        "down",
        "no answer within 1s (3 of 3)",
        duration_s=1.0021,
        number=8,
    ),
)
MOVED_SHARE = 0.1
"""What every reload moves."""


@dataclass
class FakeController:
    """Shows ``shown`` and notes what it was asked for; ``refusal`` is raised by every call.

    A reload is refused as the daemon would: text that is no mapping is no configuration.
    """

    shown: Snapshot = SNAPSHOT
    refusal: LbError | None = None
    calls: list[str] = field(default_factory=list)
    held: Overrides = field(default_factory=Overrides)
    loaded: str = "file"
    waits: bool = False
    wishes: list[ReloadWish] = field(default_factory=list)
    strangers: int = 0

    async def snapshot(self) -> Snapshot:
        self._note("snapshot")
        return self.shown

    def revision(self) -> str:
        return revision(self.loaded, self.held)

    def names(self) -> Mapping[str, Sequence[str]]:
        return {
            service.name: [backend.name for backend in service.backends]
            for service in self.shown.services
        }

    def pool_names(self) -> Sequence[str]:
        return [service.pool for service in self.shown.services]

    async def events(self, wanted: EventFilter, wait_s: float) -> list[Event]:
        del wait_s
        self._note("events")
        return [event for event in EVENTS if wanted.fits(event)][-wanted.newest :]

    def count_stranger(self) -> None:
        self.strangers += 1

    def overrides(self) -> Overrides:
        return self.held

    async def set_overrides(self, *overrides: Override, match: Match) -> None:
        self._note("set " + ", ".join(f"{o.subject} {o}" for o in overrides))
        refuse_stale(match, self.revision())
        self.held = self.held.having(*overrides)

    async def clear_overrides(
        self, *subjects: Subject, author: str, match: Match
    ) -> Sequence[Override]:
        self._note("clear " + ", ".join(map(str, subjects)) + f" by {author}")
        refuse_stale(match, self.revision())
        gone = [one for one in self.held if one.subject in subjects]
        self.held = self.held.lacking(*subjects)
        return gone

    async def plan(self, text: str | None, source: str) -> Preview:
        self._note(f"plan {source}" if text else "plan")
        self._judge(text, source)
        return PREVIEW

    async def reload(self, wish: ReloadWish) -> Outcome:
        self._note("reload")
        self.wishes.append(wish)
        refuse_stale(wish.match, self.revision())
        if self.waits:
            raise NotNowError("a reload waits for confirmation: lb-xdp confirm, or lb-xdp rollback")
        self._judge(wish.text, wish.source)
        if wish.moved_share_max is not None and wish.moved_share_max < MOVED_SHARE:
            raise TooMuchMovedError("10.0% of the slots of web would move")
        self.loaded, self.waits = f"{self.loaded}+", wish.confirm_s is not None
        return Outcome(
            "reloaded: 1 backend added, 1200 of 65537 slots moved",
            self.revision(),
            6_554,
            (ServiceMoved("web", 6_554, MOVED_SHARE),),
            None if wish.confirm_s is None else NOW_S + wish.confirm_s,
        )

    async def confirm(self, author: str, match: Match) -> str:
        self._note(f"confirm by {author}")
        return self._decide(match, "confirmed")

    async def roll_back(self, author: str, match: Match) -> str:
        self._note(f"roll_back by {author}")
        return self._decide(match, "rolled back")

    async def flows(self, wanted: Wanted) -> FlowList:
        self._note("flows")
        counts = (BackendFlows("web", "web1", 3, 3),)
        return FlowList(3, 3, FLOWS[: wanted.limit], counts, ("web",))

    async def detach(self, match: Match) -> None:
        self._note("detach")
        refuse_stale(match, self.revision())

    def _decide(self, match: Match, summary: str) -> str:
        refuse_stale(match, self.revision())
        if not self.waits:
            raise NotNowError("no reload waits for confirmation")
        self.waits = False
        return summary

    def _judge(self, text: str | None, source: str) -> None:
        if text is not None and not text.startswith("gateway:"):
            problem = ConfigProblem(source, 1, 1, "", "the file needs `gateway:` and `services:`")
            raise InvalidConfigError([problem])

    def _note(self, call: str) -> None:
        self.calls.append(call)
        if self.refusal:
            raise self.refusal
