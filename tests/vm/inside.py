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

_LIMIT_S = 3600
_SCALED = ("-o", "timeout=600", "--durations=5", "-q")
# How much falls into a time of the daemon's own, which LB_XDP_TEST_SLOWNESS does not stretch.
_BY_THE_CLOCK = ("test_netlink.py::test_many_changes_at_once_are_one_change_for_the_caller",)
# 60,000 connections take two minutes each time, and there are four; datagrams take one.
_TOO_MUCH = (
    "test_forwarding.py::test_connections_spread_by_weight_and_every_packet_is_counted",
    "test_forwarding.py::test_datagrams_come_back_from_the_vip[nat, 1 interfaces]",
    "test_forwarding.py::test_datagrams_come_back_from_the_vip[dsr, 2 interfaces]",
)
# Of the others, which take 10 to 60 s each here, what depends on kernel and distribution.
_SAMPLES = (
    *(f"test_bad_input.py::test_no_{what}" for what in ("bcc", "kernel_headers", "privilege")),
    "test_failover.py::test_a_dead_backend_costs_a_moment_of_its_own_requests[nat-2-stop]",
    "test_hard_cases.py::test_one_interface_without_native_xdp_makes_all_generic",
    "test_life.py::test_a_killed_controller_is_not_missed[dsr-1-1]",
    "test_life.py::test_a_strangers_program_stays_unless_told_to_replace_it[attach_by_link]",
    "test_life.py::test_detach_removes_program_and_pins[running]",
    "test_reload.py::test_a_new_service_does_not_disturb_the_first[nat]",
    "test_transfer.py::test_an_upload_comes_through_byte_for_byte",
)
_WHOLE = ("sandbox", "netlink", "probes", "forwarding", "interfaces")
# tests/bpf/test_general.py and the others compile dozens of programs, a minute for each.
_PROGRAMS = ("packets", "maps", "load", "tracking", "fuzz")
# The fuzzer loads the same; by itself, with -s, this one prints what the verifier says.
_THE_SAME = "tests/bpf/test_fuzz.py::test_the_verifier_accepts_every_variant"
# One worker for each CPU where nothing depends on time; with daemons side by side, probes time out.
_BY_DEFAULT = (
    (
        *("-n", "auto", "--dist", "loadfile", f"--deselect={_THE_SAME}"),
        *(f"tests/bpf/test_{name}.py" for name in _PROGRAMS),
    ),
    (
        *(f"tests/netns/test_{name}.py" for name in _WHOLE),
        *(f"tests/netns/{test}" for test in _SAMPLES),
        *(f"--deselect=tests/netns/{test}" for test in (*_BY_THE_CLOCK, *_TOO_MUCH)),
    ),
)


def main(image: str, run: str, *arguments: str) -> int:
    """Run pytest in the guest, show what it says, and return its exit code."""
    folder = Path(run)
    # Should this process be killed, its machine ends as well.
    start = partial(_start, stdin=subprocess.DEVNULL, text=True)
    runs = (arguments,) if arguments else _BY_DEFAULT
    with Machine(Path(image), folder / "source", folder, start) as machine:
        sys.stdout.write(machine.run("sh", "-c", "uname -rv").stdout)
        slowness = f"LB_XDP_TEST_SLOWNESS={machine.slowness}"
        settings = ("LB_XDP_COMPILE_CACHE=/tmp/compiled", slowness)
        pytest = ("env", *settings, ".venv/bin/python", "-m", "pytest", *_SCALED)
        codes = [
            machine.run(*pytest, *run, check=False, timeout_s=_LIMIT_S, echo=_show).returncode
            for run in runs
        ]
    return next(filter(None, codes), 0)


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
