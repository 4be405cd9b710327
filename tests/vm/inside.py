"""Runs the project's tests inside a machine: ``python -m tests.vm.inside IMAGE RUN [pytest ...]``.

``RUN`` is a folder with the checkout in ``source``; console.log and qemu.log are left in it.
Without pytest arguments the tests are those that mean something on a slow machine.
"""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path

from tests.vm.machine import Machine, MachineError

_LIMIT_S = 1500
_SCALED = ("-o", "timeout=600", "--durations=5", "-q")
# They judge how much fits into a time, and that is less on an emulated machine.
_BY_THE_CLOCK = (
    "test_probes.py::test_a_hundred_targets_are_probed_on_time",
    "test_netlink.py::test_many_changes_at_once_are_one_change_for_the_caller",
    "test_forwarding.py::test_connections_spread_by_weight_and_every_packet_is_counted",
)
_BY_DEFAULT = (
    "tests/bpf",
    "tests/netns/test_sandbox.py",
    "tests/netns/test_netlink.py",
    "tests/netns/test_probes.py",
    "tests/netns/test_forwarding.py",
    *(f"--deselect=tests/netns/{test}" for test in _BY_THE_CLOCK),
)


def main(image: str, run: str, *arguments: str) -> int:
    """Run pytest in the guest, show what it says, and return its exit code."""
    folder = Path(run)
    # Should this process be killed, its machine ends as well.
    start = partial(_start, stdin=subprocess.DEVNULL, text=True)
    pytest = [*_SCALED, *(arguments or _BY_DEFAULT)]
    with Machine(Path(image), folder / "source", folder, start) as machine:
        sys.stdout.write(machine.run("sh", "-c", "uname -rv").stdout)
        python = ("env", "LB_XDP_COMPILE_CACHE=/tmp/compiled", ".venv/bin/python", "-m", "pytest")
        return machine.run(*python, *pytest, check=False, timeout_s=_LIMIT_S, echo=_show).returncode


def _start(*command: str, **options: object) -> subprocess.Popen[str]:
    return subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *command], **options)  # type: ignore[call-overload,no-any-return]  # options of Popen


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


if __name__ == "__main__":
    try:
        sys.exit(main(*sys.argv[1:]))
    except MachineError as problem:
        sys.exit(f"vm-test: {problem}")
    except KeyboardInterrupt:
        sys.exit(130)
