"""What is said about a name that is not there: the one that was probably meant, or some of them."""

from __future__ import annotations

import json
from collections.abc import Collection
from difflib import get_close_matches

_SHOWN = 8
_LONGEST = 80


def did_you_mean(what: str, name: str, known: Collection[str]) -> str:
    """Return ``there is no backend "web7"; did you mean web1?``, without line breaks."""
    sentence = f"there is no {what} {json.dumps(name[:_LONGEST])}"
    near = get_close_matches(name[:_LONGEST], known, n=1)
    if near:
        return f"{sentence}; did you mean {near[0]}?"
    shown = sorted(known)[:_SHOWN]
    more = f" and {len(known) - len(shown)} more" if len(known) > len(shown) else ""
    return f"{sentence}; there are: {', '.join(shown) or 'none'}{more}"
