"""A text read again: what has not changed since the last time is not read twice.

Owns what is remembered of a text, item by item of its pools and services: by the exact text of the
item, with that of the items before it whose anchors it may use. Whoever keeps a ``Reading`` keeps
its memory; there is no other one.

It refuses to judge. Where anything at all is wrong, or too odd to be read in pieces, the text is
read as a ``whole``, which has the words and the places for it. So a text that is read in pieces is
one without problems, and means the same as a whole.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace

from pydantic import ValidationError

from lb_xdp.config import schema
from lb_xdp.config.build import MAX_NODES, read_frame, read_item
from lb_xdp.config.check import find_problems, find_warnings
from lb_xdp.config.convert import to_gateway, to_pool, to_service
from lb_xdp.config.cut import SECTIONS, Cut, Piece, cut_items
from lb_xdp.config.draft import (
    Draft,
    DraftPool,
    DraftService,
    draft_of,
    draft_of_pool,
    draft_of_service,
    moved,
)
from lb_xdp.config.tree import Finding, Loc, Tree
from lb_xdp.config.whole import read_whole
from lb_xdp.core.model import Config, Pool, Service
from lb_xdp.core.wish import digest, service_digest
from lb_xdp.errors import ConfigProblem, InvalidConfigError


class _OddError(Exception):
    """Only who reads the text as a whole can tell what is the matter."""


_ODD = (_OddError, ValidationError, InvalidConfigError)


@dataclass(frozen=True, slots=True)
class _PoolPart:
    """What came of a pool's text; ``nodes`` are the values in it."""

    nodes: int
    draft: DraftPool
    pool: Pool


@dataclass(frozen=True, slots=True)
class _ServicePart:
    """What came of a service's text, and of the pool that it names."""

    nodes: int
    draft: DraftService
    service: Service
    digest: bytes


@dataclass(frozen=True, slots=True)
class _Memory:
    pools: dict[str, _PoolPart] = field(default_factory=dict)
    services: dict[str, _ServicePart] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reading:
    """The configuration in a text, what it is called, and what is remembered of the text."""

    config: Config
    digest: str
    memory: _Memory = field(compare=False, repr=False)


def read_again(text: str, source: str, before: Reading | None = None) -> Reading:
    """Return the configuration in a text; ``source`` names it in messages.

    What has the text that it had ``before`` is the very same object. Raises InvalidConfigError with
    all problems, sorted by place.
    """
    with _without_collector():
        cut = cut_items(text)
        if cut is not None:
            with suppress(*_ODD):
                return _Pieces(cut, source, before.memory if before else _Memory()).read()
        config = read_whole(text, source)
        return Reading(config, digest(config), _Memory())


@contextmanager
def _without_collector() -> Iterator[None]:
    """Let Python not look for cycles meanwhile.

    What is read lives until the end, and looking through a large file's hundreds of thousands of
    objects again and again takes as long as reading it.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


class _Nowhere:
    """Stands in for places until it is clear that nobody needs them."""

    def line(self, _loc: Loc) -> int:
        return 0


class _Pieces:
    """One reading of a text in pieces."""

    def __init__(self, cut: Cut, source: str, before: _Memory) -> None:
        self._cut = cut
        self._source = source
        self._before = before
        self._now = _Memory()

    def read(self) -> Reading:
        """Return the whole. Raises one of ``_ODD``."""
        frame = self._frame()
        gateway = schema.Gateway.model_validate(_mapping(frame.data).get("gateway"))
        pools = [self._pool(*each) for each in self._pieces("pools")]
        by_name = {part.pool.name: part for part in reversed(pools)}
        services = [self._service(*each, by_name) for each in self._pieces("services")]
        nodes = sum(part.nodes for part in pools) + sum(part.nodes for part in services)
        if len(frame.values) + nodes - len(self._cut.stubs) > MAX_NODES:
            raise _OddError
        draft = replace(
            draft_of(frame.data),
            pools=tuple(part.draft for part in pools),
            services=tuple(part.draft for part in services),
            pools_readable=True,
        )
        warnings = self._warnings(draft, frame)
        found = tuple(part.service for part in services)
        config = Config(to_gateway(gateway), found, self._source, warnings)
        return Reading(config, digest(config, [part.digest for part in services]), self._now)

    def _frame(self) -> Tree:
        """Return what is no item, once it is certain that the items are where they seem to be."""
        cut = self._cut
        if "services" not in cut.stubs:
            raise _OddError
        frame = read_frame(cut.frame, self._source, schema.known_keys, cut.stubs)
        if frame is None or frame.problems:
            raise _OddError
        data = _mapping(frame.data)
        if data.keys() - {"gateway", *SECTIONS}:
            raise _OddError
        if "pools" not in cut.stubs and data.get("pools", []) != []:
            raise _OddError
        return frame

    def _pieces(self, section: str) -> Iterator[tuple[Loc, Piece]]:
        for index, piece in enumerate(self._cut.pieces.get(section, ())):
            yield (section, index), piece

    def _pool(self, at: Loc, piece: Piece) -> _PoolPart:
        part = self._before.pools.get(piece.text)
        if part is None:
            tree = self._item(at, piece)
            model = schema.Pool.model_validate(tree.data)
            draft = draft_of_pool(at, _mapping(tree.data))
            part = _PoolPart(_nodes(tree), draft, to_pool(model))
        elif part.draft.at != at:
            part = replace(part, draft=moved(part.draft, at))
        self._now.pools[piece.text] = part
        return part

    def _service(self, at: Loc, piece: Piece, pools: Mapping[str, _PoolPart]) -> _ServicePart:
        part = self._before.services.get(piece.text)
        part = _adapted(part, at, pools) if part else self._new_service(at, piece, pools)
        self._now.services[piece.text] = part
        return part

    def _new_service(self, at: Loc, piece: Piece, pools: Mapping[str, _PoolPart]) -> _ServicePart:
        tree = self._item(at, piece)
        model = schema.Service.model_validate(tree.data)
        named = _named(model.pool, pools)
        drafts = {named.pool.name: named.draft} if named else {}
        draft = draft_of_service(at, _mapping(tree.data), drafts)
        service = to_service(model, named.pool if named else None)
        return _ServicePart(_nodes(tree), draft, service, service_digest(service))

    def _item(self, at: Loc, piece: Piece) -> Tree:
        tree = read_item(piece.text, piece.items, at, self._source, schema.known_keys)
        if tree is None or tree.problems:
            raise _OddError
        return tree

    def _warnings(self, draft: Draft, frame: Tree) -> tuple[str, ...]:
        """Return what is odd, but no problem. Raises _OddError where there are problems."""
        if next(find_problems(draft, _Nowhere()), None) is not None:
            raise _OddError
        warnings = sorted(self._judged(finding, frame) for finding in find_warnings(draft))
        return tuple(map(str, warnings))

    def _judged(self, finding: Finding, frame: Tree) -> ConfigProblem:
        """Return a finding with its place: of few items anybody asks for one."""
        section, index = (*finding.loc, None)[:2]
        pieces = self._cut.pieces.get(str(section))
        if pieces is None or not isinstance(index, int):
            return frame.judged(finding)
        piece = pieces[index]
        tree = self._item(finding.loc[:2], replace(piece, text=piece.on_its_lines()))
        problem = tree.judged(finding)
        if problem.line <= piece.above:  # an alias leads to an item whose lines are others
            raise _OddError
        return problem


def _adapted(part: _ServicePart, at: Loc, pools: Mapping[str, _PoolPart]) -> _ServicePart:
    """Return what came of a service's text, at another place or with another pool perhaps."""
    draft, service = part.draft, part.service
    named = _named(draft.pool_name, pools)
    if named is not None and named.pool is not service.pool:
        service = replace(service, pool=named.pool)
        part = replace(part, service=service, digest=service_digest(service))
    pool = named.draft if named else draft.pool
    if draft.at != at and pool is not None and not named:
        pool = moved(pool, at)
    if draft.at != at or draft.pool is not pool:
        part = replace(part, draft=replace(draft, at=at, pool=pool))
    return part


def _named(name: str | None, pools: Mapping[str, _PoolPart]) -> _PoolPart | None:
    if name is not None and name not in pools:
        raise _OddError
    return None if name is None else pools[name]


def _nodes(tree: Tree) -> int:
    return len(tree.values) - 1  # the root is not the item's


def _mapping(data: object) -> dict[str, object]:
    if not isinstance(data, dict):
        raise _OddError
    return data
