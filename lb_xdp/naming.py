"""Backends by name, for the daemon: asks for their addresses, and keeps what is answered.

Owns which questions are asked when. Who asks is ``resolver``, and what is kept is
``address_book``'s. When the gateway goes where the answers lead is the daemon's to decide: it is
told that they changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from lb_xdp.address_book import AddressBook
from lb_xdp.core.event import Event
from lb_xdp.core.model import Config
from lb_xdp.core.names import Question, questions
from lb_xdp.resolver import Answer, Resolver

_FIRST_ANSWERS_S: Final = 2.0
"""How long a start or reload waits for the addresses of names that are new."""


class Naming:
    """Use as an async context manager. ``on_change``: addresses that count are others now."""

    def __init__(
        self, directory: Path, record: Callable[[Event], None], on_change: Callable[[], None]
    ) -> None:
        self._book = AddressBook(directory, record)
        self._resolver = Resolver(self._on_answer)
        self._on_change = on_change
        self.trouble = ""

    async def __aenter__(self) -> Self:
        await self._resolver.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop asking."""
        await self._resolver.__aexit__(kind, error, trace)

    async def ask(self, *configs: Config) -> None:
        """Ask what these configurations need, in the way of the first.

        Waits a while where nothing is known of a name.
        """
        asked = frozenset[Question]().union(*map(questions, configs))
        self._resolver.set_questions(asked, configs[0].gateway.dns)
        if any(self._book.unanswered(config) for config in configs):
            await self._resolver.settle(_FIRST_ANSWERS_S)

    def ask_only(self, *configs: Config) -> None:
        """Ask what these configurations need, in the way of the first, and forget all else."""
        asked = frozenset[Question]().union(*map(questions, configs))
        self._resolver.set_questions(asked, configs[0].gateway.dns)
        self._book.only(asked)

    @contextmanager
    def trying(self, config: Config, *kept: Config) -> Iterator[None]:
        """Make no events of what only this configuration asks, and none of these."""
        self._book.untold = questions(config).difference(*map(questions, kept))
        try:
            yield
        finally:
            self._book.untold = frozenset()

    def resolved(self, config: Config) -> Config:
        """Return a configuration with the backends that its names stand for now."""
        return self._book.resolved(config)

    def notices(self, config: Config) -> tuple[str, ...]:
        """Return a sentence for each thing that is wrong with its names now."""
        return (*((self.trouble,) if self.trouble else ()), *self._book.notices(config))

    def _on_answer(self, question: Question, answer: Answer) -> None:
        if not answer.addresses:
            self._book.fail(question, answer.failure)
        elif self._book.take(question, answer.addresses, answer.server, self._resolver.how):
            self._on_change()
