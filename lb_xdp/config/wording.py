"""How values, keys and places of a configuration are spelled in messages.

It owns wording only. It refuses to decide what is right or wrong.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches

_KINDS = {dict: "a mapping", list: "a list", type(None): "an empty value"}

_LONGEST_TEXT = 60
_WIDEST_NUMBER_BITS = 128
_PLAIN_KEY = re.compile(r"[A-Za-z0-9_.-]+", re.ASCII)


def show(value: object) -> str:
    """Return ``value`` as it should stand in a message: short, on one line, printable."""
    if isinstance(value, dict | list) or value is None:
        return _KINDS[type(value)]
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) and value.bit_length() > _WIDEST_NUMBER_BITS:
        return "a number this long"
    if isinstance(value, str):
        return quote(value)
    return str(value)


def quote(text: str) -> str:
    """Return ``text`` in double quotes, shortened, with what is not printable escaped."""
    short = text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}..."
    return json.dumps(short, ensure_ascii=not short.isprintable())


def key_name(key: str) -> str:
    """Return a key for use in a path: bare where that is unmistakable, else quoted."""
    return key if _PLAIN_KEY.fullmatch(key) and len(key) <= _LONGEST_TEXT else quote(key)


def not_allowed(value: object, allowed: str) -> str:
    """Return the sentence for a value that can never stand here."""
    return f"{show(value)} is not allowed; {allowed}"


def did_you_mean(word: str, candidates: Iterable[str]) -> str:
    """Return ``did you mean `x`?`` with a leading blank, or nothing where no word is near."""
    near = nearest(word, candidates)
    return f" did you mean `{near}`?" if near else ""


def nearest(word: str, candidates: Iterable[str]) -> str | None:
    """Return the candidate that ``word`` is probably a misspelling of; case does not count."""
    by_fold = {candidate.lower(): candidate for candidate in sorted(candidates)}
    near = get_close_matches(word.lower()[:_LONGEST_TEXT], by_fold, n=1, cutoff=0.6)
    return by_fold[near[0]] if near else None


def one_of(words: Sequence[str]) -> str:
    """Return what is allowed where only ``words`` are."""
    return words[0] if len(words) == 1 else f"one of {', '.join(words)}"
