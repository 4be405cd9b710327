"""How the daemon's log looks: key=value on a terminal and in systemd's journal, JSON elsewhere.

This module owns the form alone. What is logged, and with which ``extra`` keys, is the caller's.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from datetime import UTC, datetime
from enum import StrEnum


class LogFormat(StrEnum):
    """What ``--log-format`` takes."""

    AUTO = "auto"
    TEXT = "text"
    JSON = "json"
    JOURNAL = "journal"


# What every record has; all else on a record came through ``extra``.
RECORD_KEYS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def setup(level: str, form: LogFormat) -> None:
    """Send all logs of ``level`` and above to stderr in ``form``; auto asks what stderr is."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_FORMATTERS[_fitting() if form is LogFormat.AUTO else form]())
    root = logging.getLogger()
    root.setLevel(level.upper())
    root.handlers[:] = [handler]


def _fitting() -> LogFormat:
    """Return the form for whoever reads stderr: a person, systemd's journal, or a program."""
    if sys.stderr.isatty():
        return LogFormat.TEXT
    return LogFormat.JOURNAL if _to_journal() else LogFormat.JSON


def _to_journal() -> bool:
    """Say whether stderr is the stream that systemd made for the journal (systemd.exec(5))."""
    try:
        found = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


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


class JournalFormatter(logging.Formatter):
    """``<4>message key=value ...``: the priority for the journal, which knows the time itself.

    Every line has one (sd-daemon(3)), those of a traceback as well.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, or lines, for ``record``."""
        pairs = [f"{key}={_quoted(str(value))}" for key, value in _extra(record).items()]
        text = " ".join([record.getMessage(), *pairs])
        if record.exc_info:
            text += f"\n{self.formatException(record.exc_info)}"
        priority = next((p for level, p in _PRIORITIES if record.levelno >= level), _DEBUG)
        return "\n".join(f"<{priority}>{line}" for line in text.splitlines() or [""])


_DEBUG = 7
_PRIORITIES = (
    (logging.CRITICAL, 2),
    (logging.ERROR, 3),
    (logging.WARNING, 4),
    (logging.INFO, 6),
)
"""From levels to priorities of syslog(3), the most urgent first."""

_FORMATTERS: dict[LogFormat, type[logging.Formatter]] = {
    LogFormat.TEXT: TextFormatter,
    LogFormat.JSON: JsonFormatter,
    LogFormat.JOURNAL: JournalFormatter,
}


def _quoted(value: str) -> str:
    """Return ``value`` in quotes where a reader could not tell its end without them."""
    plain = value.isprintable() and not any(mark in value for mark in ' "=')
    return value if plain and value else json.dumps(value)
