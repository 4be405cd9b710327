"""From a file to a ``Config``, or to every problem that the file has.

It owns what a file is: bytes, UTF-8, not too many. What its text means is ``reread``'s part.
"""

from __future__ import annotations

from codecs import BOM_UTF8
from pathlib import Path

from lb_xdp.config.reread import read_again
from lb_xdp.config.syntax import place_of_index
from lb_xdp.core.model import Config
from lb_xdp.errors import ConfigProblem, InvalidConfigError

MAX_FILE_BYTES = 4 * 1024 * 1024  # the largest configuration allowed has about 1 MB


def load_config(path: str | Path) -> Config:
    """Return the configuration in the file at ``path``, UTF-8 YAML.

    Raises InvalidConfigError with all problems, also where the file cannot be read.
    """
    return parse_config(read_text(path), str(path))


def read_text(path: str | Path) -> str:
    """Return the text of the file at ``path``. Raises InvalidConfigError where it has none."""
    source = str(path)
    try:
        with Path(path).open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise _refusal(source, f"the file cannot be read: {reason}") from error
    if len(raw) > MAX_FILE_BYTES:
        raise _refusal(source, f"the file has more than {MAX_FILE_BYTES:,} bytes")
    return _decode(raw, source)


def parse_config(text: str, source: str) -> Config:
    """Return the configuration that ``text`` holds; ``source`` names it in messages.

    Raises InvalidConfigError with all problems, sorted by place.
    """
    return read_again(text, source).config


def _decode(raw: bytes, source: str) -> str:
    text = raw.removeprefix(BOM_UTF8)
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        before = text[: error.start].decode("utf-8")
        line, column = place_of_index(before, len(before))
        message = f"byte 0x{text[error.start]:02x} is not UTF-8; save the file as UTF-8"
        raise InvalidConfigError([ConfigProblem(source, line, column, "", message)]) from error


def _refusal(source: str, message: str) -> InvalidConfigError:
    return InvalidConfigError([ConfigProblem(source, 1, 1, "", message)])
