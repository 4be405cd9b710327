"""What follows from a service or a configuration, remembered with the object that it follows from.

A reload asks the same of the same ten thousand backends again and again. Both are frozen, so the
very object always gives the same; what is remembered goes when the object does. Two that are merely
equal are not taken for one another: comparing them costs as much as the answer. Whoever asks must
not change what is returned.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TypeVar

from lb_xdp.core.model import Config, Service

Source = TypeVar("Source", Service, Config)
Result = TypeVar("Result")


def remembered(make: Callable[[Source], Result]) -> Callable[[Source], Result]:
    """Return a function that asks ``make`` once for each object."""

    @wraps(make)
    def ask(source: Source) -> Result:
        try:
            result: Result = source.derived[make]
        except KeyError:
            result = source.derived[make] = make(source)
        return result

    return ask
