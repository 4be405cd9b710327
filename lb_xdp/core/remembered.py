"""What follows from a whole configuration, remembered for the latest few configurations.

A reload asks the same of the same ten thousand backends again and again. A configuration is frozen,
so the very object always gives the same; two that are merely equal are not taken for one another:
comparing them costs as much as the answer. Whoever asks must not change what is returned.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TypeVar

from lb_xdp.core.model import Config

KEPT = 4
"""As many as there are at once: the file's and the whole one, of the present and of the next."""

Result = TypeVar("Result")


def remembered(make: Callable[[Config], Result]) -> Callable[[Config], Result]:
    """Return a function that asks ``make`` once for each configuration."""
    held: list[tuple[Config, Result]] = []

    @wraps(make)
    def ask(config: Config) -> Result:
        for known, result in held:
            if known is config:
                return result
        result = make(config)
        held[:] = [(config, result), *held[: KEPT - 1]]
        return result

    return ask
