"""The last good answers about backends' names, and the word about what changes.

Owns what is held of every question, across restarts (``names.json``), the events and the notices.
Refuses to judge an answer (``core.names``) and to ask (``resolver``).

The file is a cache: if it cannot be written, that is told, and what DNS says counts all the same;
if it cannot be read, DNS is asked before anything is changed.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Collection
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

from lb_xdp import disk
from lb_xdp.core.event import Event, EventKind
from lb_xdp.core.hosts import HOSTS, why_unfit
from lb_xdp.core.model import Address, Config, Resolving
from lb_xdp.core.names import (
    MAX_ADDRESSES,
    Change,
    Held,
    Names,
    Question,
    resolved,
    unanswered,
)

_log = logging.getLogger(__name__)

_VERSION: Final = 1


class AddressBook:
    """Not thread-safe: all is called from the event loop. ``record`` takes events.

    Of questions that are ``untold`` there are none.
    """

    def __init__(self, directory: Path, record: Callable[[Event], None]) -> None:
        self._path = directory / "names.json"
        self._record = record
        self._names = _load(self._path)
        self._trouble: dict[Question, str] = {}
        self.untold: frozenset[Question] = frozenset()

    def resolved(self, config: Config) -> Config:
        """Return a configuration with the backends that its names stand for now."""
        return resolved(config, self._names)

    def unanswered(self, config: Config) -> list[str]:
        """Return the hosts of a configuration of which no address is known."""
        return unanswered(config, self._names)

    def only(self, asked: Collection[Question]) -> None:
        """Forget all but these."""
        self._trouble = {q: said for q, said in self._trouble.items() if q in asked}
        self._keep(self._names.only(asked))

    def notices(self, config: Config) -> tuple[str, ...]:
        """Return a sentence for each name that is in trouble, now."""
        lacking = set(unanswered(config, self._names))
        said = [
            f"{question}: {why}"
            for question, why in sorted(self._trouble.items())
            # A name with one IP version is in order: the other one is missed by nobody.
            if question.host in lacking or self._names.addresses(question)
        ]
        silent = lacking - {question.host for question in self._trouble}
        return (*said, *(f"{host}: no answer yet" for host in sorted(silent)))

    def take(
        self, question: Question, addresses: Collection[Address], source: str, how: Resolving
    ) -> bool:
        """Take in an answer; say whether the addresses that count have changed."""
        fit = {address for address in addresses if not why_unfit(address, HOSTS)}
        if not fit:
            unfit = ", ".join(map(str, sorted(addresses, key=str)))
            self.fail(question, f"{source} says {unfit}, which can be no backend's address")
            return False
        counted = sorted(fit, key=int)[:MAX_ADDRESSES]
        before = self._names.addresses(question)
        after, change = self._names.with_answer(question, counted, how)
        cause = f"answer of {source}"
        if len(counted) < len(fit):
            cause = f"{cause} with {len(fit)} addresses, of which {MAX_ADDRESSES} count"
        if change is Change.HELD_BACK:
            held = after.held[question]
            lost = len(held.accepted - held.doubted)
            self._complain(
                question,
                f"{source} takes away {lost} of {len(held.accepted)} addresses, more than "
                f"{how.max_change:.0%}: held back until it says so {how.confirm} times in a row",
            )
        else:
            self._trouble.pop(question, None)
        changed = after.addresses(question) != before
        if changed:
            self._tell(EventKind.RESOLVED, question, before, after.addresses(question), cause)
        self._keep(after)
        return changed

    def fail(self, question: Question, why: str) -> None:
        """Take in that there was no answer: nothing changes."""
        known = len(self._names.addresses(question))
        kept = f"; the last good answer counts ({known})" if known else ""
        self._complain(question, f"{why}{kept}")

    def _complain(self, question: Question, why: str) -> None:
        if self._trouble.get(question) != why:
            before = self._names.addresses(question)
            self._tell(EventKind.RESOLVE_FAILED, question, before, before, why)
        self._trouble[question] = why

    def _tell(
        self,
        kind: EventKind,
        question: Question,
        before: Collection[Address],
        after: Collection[Address],
        cause: str,
    ) -> None:
        if question in self.untold:
            return
        self._record(
            Event(
                kind,
                time.time(),
                backend=question.host,
                before=_listed(before),
                after=_listed(after),
                cause=cause,
            )
        )

    def _keep(self, names: Names) -> None:
        before, self._names = self._names, names
        if _accepted(before) == _accepted(names):
            return
        try:
            _save(self._path, names)
        except OSError as error:
            _log.warning("answers of DNS not kept for a restart: %s: %s", self._path, error)


def _listed(addresses: Collection[Address]) -> str:
    return ", ".join(map(str, sorted(addresses, key=int)))


def _accepted(names: Names) -> dict[Question, frozenset[Address]]:
    return {question: held.accepted for question, held in names.held.items()}


def _save(path: Path, names: Names) -> None:
    """Replace the file. Raises OSError."""
    entries = [
        {
            "host": question.host,
            "family": question.family,
            "addresses": [str(address) for address in sorted(accepted, key=int)],
        }
        for question, accepted in sorted(_accepted(names).items())
    ]
    text = json.dumps({"version": _VERSION, "names": entries}, indent=1)
    disk.replace(path, text, lasting=False)  # a cache


def _load(path: Path) -> Names:
    """Return what was kept; nothing where there is no file, or none that can be understood."""
    try:
        return _decode(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return Names()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        _log.warning("kept answers of DNS not used: %s: %r", path, error)
        return Names()


def _decode(document: dict[str, Any]) -> Names:
    if document["version"] != _VERSION:
        raise ValueError(document["version"])
    return Names(dict(map(_entry, document["names"])))


def _entry(entry: dict[str, Any]) -> tuple[Question, Held]:
    addresses = frozenset(map(ip_address, entry["addresses"]))
    question = Question(str(entry["host"]), int(entry["family"]))
    if any(address.version != question.family for address in addresses):
        raise ValueError(f"{question}: {_listed(addresses)}")
    return question, Held(addresses)
