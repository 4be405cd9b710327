"""What a daemon answered: as our own values and errors, or as text for people.

The client's half of the form that travels over the API socket; the server's is ``wire``. Commands
import this whenever they run, so it takes little with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from lb_xdp.errors import ConfigProblem, InvalidConfigError, LbError

if TYPE_CHECKING:
    from lb_xdp.core.snapshot import Snapshot


def indented(text: bytes) -> bytes:
    """Return JSON text for people to read, and for programs that compare lines."""
    return msgspec.json.format(text, indent=2)


def decode_snapshot(text: bytes) -> Snapshot:
    """Return the snapshot of a daemon's answer.

    Unknown keys are ignored and fields with a default may be missing, so that a command and a
    daemon of neighbouring versions understand each other. Raises LbError when they do not.
    """
    from lb_xdp.core.snapshot import Snapshot  # noqa: PLC0415 - few commands need it

    try:
        return msgspec.json.decode(text, type=Snapshot)
    except msgspec.MsgspecError as error:
        raise LbError(
            f"the daemon's status does not fit this command's version ({error}): "
            "install the same lb-xdp for both, then restart the daemon"
        ) from error


def error_from_json(document: dict[str, Any]) -> LbError:
    """Return the error to raise for a daemon's answer, with the exit code that it asks for."""
    problems = document.get("errors")
    if isinstance(problems, list) and problems:
        return InvalidConfigError(msgspec.convert(problems, list[ConfigProblem]))
    error = LbError(str(document.get("error", "the daemon refused without saying why")))
    error.exit_code = int(document.get("exit_code", LbError.exit_code))
    return error
