"""Where the next generation is made: compiled, loaded and tried before its turn comes.

All that takes the compiler, the verifier and the trial a second or more can be done ahead, in any
thread, while the present generation forwards and fails over. One generation is kept at a time.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from lb_xdp.core.plan import Plan
from lb_xdp.datapath.blueprint import draw
from lb_xdp.datapath.generation import Generation, load_generation
from lb_xdp.datapath.maps import BpfMap
from lb_xdp.datapath.selftest import twin

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Made:
    plan: Plan
    generation: Generation


class Workshop:
    """``maps`` are the gateway's persistent ones; they are referred to, not changed."""

    def __init__(self, maps: Mapping[str, BpfMap]) -> None:
        self._maps = maps
        self._made: _Made | None = None
        self._lock = threading.Lock()

    def prepare(self, plan: Plan) -> None:
        """Have a plan's generation ready. Raises DatapathError, SelfTestError among them."""
        with self._lock:
            self._prepare(plan)

    def _prepare(self, plan: Plan) -> _Made:
        made = self._made
        if made and (made.plan.structure, made.plan.indices) == (plan.structure, plan.indices):
            return made
        self._drop()
        blueprint = draw(plan)
        generation = load_generation(plan, self._maps, blueprint)
        try:
            with ThreadPoolExecutor(1) as aside:
                filled = aside.submit(generation.fill, plan)
                with twin(plan, generation, blueprint.code) as bench:
                    filled.result()
                    tried = bench.compare(plan)
        except BaseException:
            generation.close()
            raise
        _log.debug("generation tried packets=%d foretold=%d", *tried)
        self._made = _Made(plan, generation)
        return self._made

    def take(self, plan: Plan) -> Generation:
        """Give a plan's generation away, filled as the plan says. Raises as ``prepare`` does."""
        with self._lock:
            made = self._prepare(plan)
            self._made = None
        made.generation.number = plan.generation
        try:
            made.generation.fill(plan, made.plan)
            made.generation.allow(plan)
        except BaseException:
            made.generation.close()
            raise
        return made.generation

    def close(self) -> None:
        """Throw away what was made and not taken."""
        with self._lock:
            self._drop()

    def _drop(self) -> None:
        if self._made is not None:
            self._made.generation.close()
            self._made = None
