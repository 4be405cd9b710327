"""Changes of the configuration: by a reload, by names that lead elsewhere, and back again.

Owns what is asked before a change is made and what is told after it. How one gets from one
configuration to another is ``passage``'s; what waits to be confirmed, ``confirmation``'s. All of it
happens in turns of the daemon's one working task, one change at a time.

While a change waits to be confirmed no other is taken, by whatever way: neither would be what
somebody asked for if the first one is undone.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial

from lb_xdp.core.change import shared
from lb_xdp.core.event import Event, EventKind
from lb_xdp.core.model import Config, ServiceKey
from lb_xdp.core.plan import Plan
from lb_xdp.core.preview import largest_share, moved_shares
from lb_xdp.core.ring import RING_SLOTS
from lb_xdp.core.snapshot import ReloadStatus
from lb_xdp.core.wish import Outcome, ReloadWish, moved_by_name
from lb_xdp.errors import InvalidConfigError, LbError, NotNowError, StaleError, TooMuchMovedError
from lb_xdp.ledger import Ledger
from lb_xdp.naming import Naming
from lb_xdp.passage import Passage
from lb_xdp.pending import InForce, Undo, Written, called, read, text_of, written
from lb_xdp.supervisor import Supervisor
from lb_xdp.turns import Turns
from lb_xdp.witness import Record, membership_events

_log = logging.getLogger(__name__)

_NAMED = 3  # services in a refusal
_NAMES_RETRY_S = 5.0  # how soon addresses that were refused are tried again


class Changes:
    """``arrived`` is awaited when another configuration is in force.

    ``former`` is what comes back if the present one is not confirmed, while it waits.
    """

    def __init__(
        self,
        ledger: Ledger,
        naming: Naming,
        passage: Passage,
        turns: Turns,
        supervisor: Supervisor,
        *,
        record: Record,
        arrived: Callable[[], Awaitable[None]],
    ) -> None:
        self.former: Written | None = None
        self.last_reload = ReloadStatus(success=True, timestamp_s=time.time())
        self._ledger = ledger
        self._naming = naming
        self._passage = passage
        self._turns = turns
        self._supervisor = supervisor
        self._record = record
        self._arrived = arrived

    async def read(self, text: str | None, source: str) -> tuple[Written, str]:
        """Return the configuration in a text, or in the daemon's file.

        With it the fingerprint of that file where it is passed over, else nothing: a text that is
        the file's is the file. Raises InvalidConfigError.
        """
        path, before = self._ledger.path, self._ledger.present
        meanwhile = self._passage.meanwhile
        if text is None:
            return await meanwhile(asyncio.to_thread(read, path, before)), ""
        own = await asyncio.to_thread(text_of, path)
        if text == own:
            return await meanwhile(asyncio.to_thread(written, own, str(path), before)), ""
        return await meanwhile(asyncio.to_thread(written, text, source, before)), called(own)

    def ask_names(self) -> None:
        """Ask for the names of what is in force or may be again, and forget all others."""
        kept = (self._ledger.present, self.former)
        self._naming.ask_only(*(one.config for one in kept if one is not None))

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """Let systemd know of a change while it is made, and ask for the right names after it."""
        with self._supervisor.reloading():
            try:
                yield
            finally:
                self.ask_names()

    async def go(
        self,
        to: Written,
        held: Callable[[], InForce | None],
        *,
        promised: bool = False,
        allow: Callable[[Config, Plan], None] | None = None,
    ) -> Mapping[ServiceKey, int]:
        """Put a configuration in force, or change nothing. Raises LbError.

        ``held`` makes what is kept of that for a restart; ``promised`` is what must be on disk
        before. ``allow`` raises when it does not like the plan. Returns how many slots moved by
        service.
        """
        before, present = self._passage.config, self._ledger.present
        moved = None
        await self._passage.meanwhile(self._naming.ask(to.config, present.config))
        config = shared(before, self._naming.resolved(to.config))
        try:
            async with self._passage.towards(config):
                kept = held()
                if promised and kept is not None:
                    await self._passage.meanwhile(self._ledger.promise(kept))
                moved = self._passage.take(config, partial(allow, config) if allow else None)
        except LbError as error:
            if moved is None:
                if promised:
                    await self._ledger.catch_up()
                raise
            _log.error("what is not in force any more is still looked after: %s", error)
        await self._ledger.enter(to, kept)
        for event in membership_events(before, config, time.time()):
            self._record(event)
        await self._arrived()
        return moved

    # Reload.

    async def reload_on_hangup(self) -> None:
        """Load the file again; what becomes of it is in log, status and events."""
        with suppress(LbError):
            await self.reload(ReloadWish(author="SIGHUP"))

    async def reload(self, wish: ReloadWish) -> Outcome:
        """Go to another configuration, all of it or nothing. Raises LbError."""
        with self.under_way():
            try:
                outcome = await self._reload(wish)
            except LbError as error:
                self._refuse(wish, error)
                raise
        source = self._ledger.present.source
        self.last_reload = ReloadStatus(success=True, timestamp_s=time.time())
        _log.info("reloaded %s: %s", source, outcome.summary)
        self._tell(EventKind.RELOADED, f"{source}: {outcome.summary}", wish.author)
        return outcome

    async def _reload(self, wish: ReloadWish) -> Outcome:
        self.refuse_while_waiting()
        to, passed_over = await self.read(wish.text, wish.source)
        former = self._ledger.present
        most = wish.moved_share_max
        moved = await self.go(
            to,
            partial(_in_force, wish, to, former, passed_over),
            promised=True,
            allow=None if most is None else partial(self._allow, most),
        )
        self.former = former if self._ledger.waits else None
        return self._outcome(to, moved, wish.confirm_s)

    def refuse_while_waiting(self) -> None:
        """Raise NotNowError while a change waits to be confirmed."""
        if self._ledger.waits:
            raise NotNowError(
                f"the change to {self._ledger.present.source} waits to be confirmed: `lb-xdp "
                "confirm` keeps it, `lb-xdp rollback` undoes it; then ask again"
            )

    def _allow(self, most: float, after: Config, plan: Plan) -> None:
        """Raise TooMuchMovedError if more than this share of some service's slots would move."""
        before = self._passage.config
        if largest_share(before, after, plan) <= most:
            return
        left = {service.key for service in after.services}
        gone = [(service, 1.0) for service in before.services if service.key not in left]
        shares = [*gone, *moved_shares(after, plan)]
        worst = ", ".join(f"{share:.1%} of {service.name}" for service, share in shares[:_NAMED])
        raise TooMuchMovedError(
            f"more than {most:.1%} of a service's slots would move ({worst}): nothing was changed"
        )

    def _outcome(
        self, to: Written, moved: Mapping[ServiceKey, int], confirm_s: float | None
    ) -> Outcome:
        slots = sum(moved.values())
        services = f"{_count(len(to.config.services), 'service')}; {_count(slots, 'slot')} moved"
        held = self._ledger.held
        waits = f"; undone in {confirm_s:g} s unless confirmed" if confirm_s is not None else ""
        return Outcome(
            services + waits,
            "",
            slots,
            moved_by_name(to.config, moved, RING_SLOTS),
            held.undo.until_timestamp_s if held and held.undo else None,
        )

    def _refuse(self, wish: ReloadWish, error: LbError) -> None:
        """Tell of a refusal. By conditions of the wish's own, it is no fault of the file."""
        problems = error.problems if isinstance(error, InvalidConfigError) else (error,)
        messages = tuple(map(str, problems))
        if not isinstance(error, (NotNowError, StaleError)) or wish.author == "SIGHUP":
            self.last_reload = ReloadStatus(success=False, timestamp_s=time.time(), errors=messages)
        _log.error("reload refused, nothing was changed: %s", "; ".join(messages))
        self._tell(EventKind.RELOAD_REFUSED, "; ".join(messages), wish.author)

    def tell_of_start(self, error: InvalidConfigError) -> None:
        """Tell that this start went on without the daemon's file, since that has mistakes."""
        messages = tuple(map(str, error.problems))
        self.last_reload = ReloadStatus(success=False, timestamp_s=time.time(), errors=messages)
        cause = f"started without {self._ledger.path}, which has mistakes: {'; '.join(messages)}"
        _log.error("%s", cause)
        self._tell(EventKind.RELOAD_REFUSED, cause, "")

    # Names.

    async def take_answers(self) -> None:
        """Go where names lead by now. What is refused is told, and tried again."""
        config = self._naming.resolved(self._ledger.present.config)
        if config == self._passage.config:
            return
        try:
            moved = await self.go(self._ledger.present, lambda: self._ledger.held)
        except LbError as error:
            self._naming.trouble = f"addresses of backends by name not taken, trying again: {error}"
            _log.error("%s", self._naming.trouble)
            asyncio.get_running_loop().call_later(
                _NAMES_RETRY_S, self._turns.ask, self.take_answers
            )
        else:
            self._naming.trouble = ""
            slots = _count(sum(moved.values()), "slot")
            _log.info("addresses of backends by name changed: %s moved", slots)

    def _tell(self, kind: EventKind, cause: str, author: str) -> None:
        self._record(Event(kind, time.time(), cause=cause, author=author))


def _in_force(wish: ReloadWish, to: Written, former: Written, passed_over: str) -> InForce | None:
    """Return what is to be kept of a change; nothing where the daemon's file says it all."""
    now_s, confirm_s = time.time(), wish.confirm_s
    if confirm_s is None and not passed_over:
        return None
    undo = None
    if confirm_s is not None:
        undo = Undo(former.text, former.source, now_s + confirm_s, confirm_s)
    return InForce(to.text, to.source, wish.author, now_s, passed_over, undo=undo)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
