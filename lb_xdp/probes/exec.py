"""One exec probe: a command of the operator's, which judges by its exit code.

The command runs with the daemon's rights, in a process group of its own, without a shell, with an
environment of nothing but ``PATH`` and ``LB_XDP_...``. When it ends, or its time is over, the whole
group is killed: no probe leaves a process behind.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from threading import Thread
from typing import Final

from lb_xdp.core.health import Target
from lb_xdp.probes.attempt import Answer, ProbeFailedError, first_words

OUTPUT_LIMIT_BYTES: Final = 4096
"""How much of the output is kept: its first line is the detail."""

_DETAIL_LIMIT: Final = 100
_DEATH_S: Final = 0.05
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class ExecExchange:
    """Runs one command about one target."""

    def __init__(self, target: Target) -> None:
        self._command = target.check.command
        self._environment = environment(target)
        self._stuck: subprocess.Popen[bytes] | None = None

    async def ask(self) -> Answer:
        """Run it to its end."""
        if self._stuck is not None and self._stuck.poll() is None:
            raise ProbeFailedError("the command of an earlier probe is stuck in the kernel")
        process = self._start()
        try:
            output = await _watch(process)
        finally:
            self._end(process)
        return _judge(process.returncode, output)

    def close(self) -> None:
        """Nothing is kept but a command that is stuck, for which a thread waits."""

    def _start(self) -> subprocess.Popen[bytes]:
        try:
            return subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=self._environment,
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            reason = (error.strerror or "unknown error").lower()
            raise ProbeFailedError(f"{self._command[0]} cannot be run: {reason}") from error

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        """Kill the group, before its leader is waited for: its number cannot be another's yet."""
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        if process.stdout is not None:
            process.stdout.close()
        try:
            process.wait(_DEATH_S)
        except subprocess.TimeoutExpired:
            # In a system call that nothing interrupts. Whatever becomes of us, it is waited for.
            self._stuck = process
            Thread(target=process.wait, name=f"end of {process.pid}", daemon=True).start()


def environment(target: Target) -> Mapping[str, str]:
    """Return what the command is told."""
    names = target.names
    return {
        "PATH": _PATH,
        "LB_XDP_BACKEND_ADDRESS": str(target.address),
        "LB_XDP_BACKEND_PORT": str(target.port or ""),
        "LB_XDP_BACKEND_NAME": names.backend,
        "LB_XDP_BACKEND_POOL": names.pool,
        "LB_XDP_BACKEND_SERVICE": ",".join(names.services),
        "LB_XDP_TIMEOUT_S": f"{target.check.timeout_s:g}",
    }


async def _watch(process: subprocess.Popen[bytes]) -> bytes:
    """Return the beginning of the output once the process has ended; it is not waited for yet.

    The end of the output does not count: a child that the command left behind may hold the pipe.
    """
    assert process.stdout is not None  # noqa: S101 - it is a pipe
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    pipe, pidfd = process.stdout.fileno(), os.pidfd_open(process.pid)
    os.set_blocking(pipe, False)
    output = bytearray()

    def read() -> None:
        # All is read, little is kept: a full pipe would stop the command.
        try:
            data = os.read(pipe, 65536)
        except BlockingIOError:
            return
        output.extend(data[: OUTPUT_LIMIT_BYTES - len(output)])
        if not data:
            loop.remove_reader(pipe)

    loop.add_reader(pipe, read)
    loop.add_reader(pidfd, ended.set)
    try:
        await ended.wait()
        read()
    finally:
        loop.remove_reader(pipe)
        loop.remove_reader(pidfd)
        os.close(pidfd)
    return bytes(output)


def _judge(code: int, output: bytes) -> Answer:
    said = first_words(output.lstrip().partition(b"\n")[0], _DETAIL_LIMIT)
    if code == 0:
        return Answer(said or "exit 0")
    how = f"exit {code}" if code > 0 else f"killed by signal {-code}"
    raise ProbeFailedError(f"{how}: {said}" if said else how)
