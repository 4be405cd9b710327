"""How the daemon's log looks: one line of key=value on a terminal, one JSON object elsewhere.

This module owns the form alone. What is logged, and with which ``extra`` keys, is the caller's.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from enum import StrEnum


class LogFormat(StrEnum):
    """What ``--log-format`` takes."""

    AUTO = "auto"
    TEXT = "text"
    JSON = "json"


# What every record has; all else on a record came through ``extra``.
RECORD_KEYS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def setup(level: str, form: LogFormat) -> None:
    """Send all logs of ``level`` and above to stderr in ``form``; auto asks whether it is a tty."""
    text = form is LogFormat.TEXT or (form is LogFormat.AUTO and sys.stderr.isatty())
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(TextFormatter() if text else JsonFormatter())
    root = logging.getLogger()
    root.setLevel(level.upper())
    root.handlers[:] = [handler]


def _extra(record: logging.LogRecord) -> dict[str, object]:
    """Return the keys that the caller gave with ``extra``."""
    return {key: value for key, value in vars(record).items() if key not in RECORD_KEYS}


def _time(record: logging.LogRecord) -> str:
    """Return the record's time in UTC, RFC 3339 with milliseconds."""
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class TextFormatter(logging.Formatter):
    """``TIME LEVEL message key=value ...``; a traceback follows on lines of its own."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line for ``record``."""
        pairs = [f"{key}={_quoted(str(value))}" for key, value in _extra(record).items()]
        line = " ".join([_time(record), record.levelname, record.getMessage(), *pairs])
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """One JSON object on one line: time, level, logger, message, the extra keys, traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line for ``record``."""
        document: dict[str, object] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_extra(record),
        }
        if record.exc_info:
            document["traceback"] = self.formatException(record.exc_info)
        return json.dumps(document, default=str)


def _quoted(value: str) -> str:
    """Return ``value`` in quotes where a reader could not tell its end without them."""
    plain = value.isprintable() and not any(mark in value for mark in ' "=')
    return value if plain and value else json.dumps(value)
