"""The guest's end of a `Machine`: runs commands that come by a virtio port, sends what they say.

One JSON object on a line each way. In: ``{"command": [...]}``. Out: ``{"output": text}`` as it
comes, stdout and stderr together, then ``{"code": n}``; and ``{"ready": true}`` after a boot. It
runs in the guest as it is, by the distribution's Python, so it imports nothing of the project.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, BinaryIO

_PORT = Path("/dev/virtio-ports/lb-xdp")
_CHECKOUT = "/opt/lb-xdp"


def _say(port: BinaryIO, **message: Any) -> None:
    port.write(json.dumps(message).encode() + b"\n")
    port.flush()


def _run(port: BinaryIO, command: list[str]) -> int:
    try:
        process = subprocess.Popen(
            command,
            cwd=_CHECKOUT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
        )
    except OSError as error:
        _say(port, output=f"{error}\n")
        return 127
    assert process.stdout is not None
    while piece := process.stdout.read(4096):
        _say(port, output=piece.decode(errors="replace"))
    return process.wait()


def main() -> int:
    """Serve until the machine goes down."""
    os.environ["PATH"] = "/opt/lb-xdp/.venv/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
    subprocess.run(["udevadm", "wait", "--timeout=60", str(_PORT)], check=True)
    with _PORT.open("r+b", buffering=0) as port:
        _say(port, ready=True)
        rest = b""
        while True:
            piece = port.read(65536)
            if not piece:
                return 0
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                _say(port, code=_run(port, json.loads(line)["command"]))


if __name__ == "__main__":
    sys.exit(main())
