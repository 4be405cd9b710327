"""What ruamel.yaml says about broken YAML, in plain words and at the most useful place.

It owns the translation only: reading the text is ``tree``'s part.
"""

from __future__ import annotations

import re

from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.reader import ReaderError

from lb_xdp.config.wording import quote
from lb_xdp.errors import ConfigProblem

TOO_DEEP = "lists and mappings are nested too deeply; no key of this file lies that deep"

# Each: a pattern of the parser's complaint, and what to tell the operator.
_TRANSLATIONS = (
    (r"found character '\\t'", "a tab cannot stand here; indent with spaces"),
    (
        r"found character '(.)' that cannot start",
        r"\1 cannot start a value; put the text in quotes",
    ),
    (
        r"mapping values are not allowed here",
        "`:` cannot stand here; check the indentation, or put text that contains `: ` in quotes",
    ),
    (
        r"expected <block end>",
        "this line does not belong to what stands above it; check its indentation",
    ),
    (r"could not find expected ':'", "a `key: value` line lacks its `:`"),
    (r"found undefined alias (.*)", r"alias \1 is used, but no anchor of that name stands above"),
    (r"found another document", "a second YAML document starts here; one file holds one"),
    (r"escape", r"a backslash in double quotes starts no known escape; use single quotes"),
)
# Complaints about something that was opened and never closed point to where it was opened.
_UNCLOSED = (
    (r"quoted scalar .*end of", "this quote is never closed"),
    (
        r"flow sequence .*expected ','",
        "this list lacks a `,` between two values, or its closing `]`",
    ),
    (
        r"flow mapping .*expected ','",
        "this mapping lacks a `,` between two keys, or its closing `}`",
    ),
)


def syntax_problem(error: Exception, text: str, source: str) -> ConfigProblem:
    """Return the one problem of a text that ruamel.yaml could not read."""
    if isinstance(error, MarkedYAMLError):
        return _marked_problem(error, text, source)
    if isinstance(error, ReaderError):
        return _character_problem(error, text, source)
    message = TOO_DEEP if isinstance(error, RecursionError) else f"broken YAML: {error}"
    return ConfigProblem(source, 1, 1, "", message)


def place_of_index(text: str, index: int) -> tuple[int, int]:
    """Return line and column, both from 1, of the character at ``index``."""
    before = text[:index]
    return before.count("\n") + 1, index - (before.rfind("\n") + 1) + 1


def _marked_problem(error: MarkedYAMLError, text: str, source: str) -> ConfigProblem:
    complaint = " ".join(filter(None, (error.context, error.problem)))
    mark = error.problem_mark or error.context_mark
    line, column = (mark.line, mark.column) if mark else (0, 0)
    if tab := _tab_in_indentation(text, line):
        return ConfigProblem(source, line + 1, tab, "", "a tab in the indentation; use spaces")
    for pattern, message in _UNCLOSED:
        if error.context_mark and re.search(pattern, complaint):
            opened = error.context_mark
            return ConfigProblem(source, opened.line + 1, opened.column + 1, "", message)
    return ConfigProblem(source, line + 1, column + 1, "", _translate(complaint))


def _tab_in_indentation(text: str, line: int) -> int:
    """Return the column, from 1, of a tab before the first word of ``line``, or 0."""
    lines = text.split("\n")
    found = lines[line] if line < len(lines) else ""
    return found[: len(found) - len(found.lstrip())].find("\t") + 1


def _translate(complaint: str) -> str:
    for pattern, message in _TRANSLATIONS:
        if match := re.search(pattern, complaint):
            return match.expand(message)
    return f"broken YAML: {complaint}"


def _character_problem(error: ReaderError, text: str, source: str) -> ConfigProblem:
    line, column = place_of_index(text, error.position)
    character = quote(text[error.position : error.position + 1])
    return ConfigProblem(source, line, column, "", f"the character {character} cannot stand here")
