"""Loading: the verifier is heard, and a program gets only maps that lb_xdp has."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from lb_xdp.datapath import syscall
from lb_xdp.datapath.compile import MAP_NAMES, Code, Parameters, compile_source, placeholder
from lb_xdp.datapath.generation import load_programs
from lb_xdp.datapath.load import load_program, put_descriptors
from lb_xdp.errors import DatapathError, VerifierError

_TEMPLATE = """\
#include <uapi/linux/bpf.h>
int lb_gateway(struct xdp_md *ctx)
{{
	char *data = (char *)(long)ctx->data, *end = (char *)(long)ctx->data_end;
	{body}
}}
"""


def compile_body(folder: Path, body: str) -> bytes:
    source = folder / "program.c"
    source.write_text(_TEMPLATE.format(body=body))
    return compile_source(source, [], "lb_gateway")


def test_a_refused_program_tells_all_that_the_verifier_said(tmp_path: Path) -> None:
    """The error has the whole log, its message the last lines, the kernel and the comfort."""
    code = compile_body(tmp_path, "return data[9];")
    with pytest.raises(VerifierError) as caught:
        load_program(code, {})
    assert "invalid access to packet" in caught.value.log
    assert "invalid access to packet" in str(caught.value)
    assert "R1=ctx" in caught.value.log
    assert os.uname().release in str(caught.value)
    assert "forwarding goes on" in str(caught.value)


def test_a_good_program_runs_under_its_name(tmp_path: Path) -> None:
    """The kernel knows it by the name that it was given, and runs it."""
    code = compile_body(tmp_path, "return end - data > 20 ? XDP_TX : XDP_DROP;")
    program = load_program(code, {}, "lb_test")
    info = syscall.program_info(program.fd)
    outcome = syscall.program_test_run(program.fd, bytes(64), ifindex=1)
    os.close(program.fd)
    assert (info.name, info.id) == ("lb_test", program.id)
    assert outcome.action == 3


def test_one_program_that_is_refused_refuses_all(tmp_path: Path) -> None:
    """They are loaded at once; when one is not, none of the others is left open."""
    good = compile_body(tmp_path, "return XDP_DROP;")
    bad = compile_body(tmp_path, "return data[9];")
    parameters = Parameters(frozenset(), filter_bits=9, bucket_bits=6, bucket6_bits=6, hz=100)
    descriptors = Path("/proc/self/fd")
    open_before = len([*descriptors.iterdir()])
    for gateway, general in ((good, bad), (bad, good)):
        code = Code(gateway, {"lb_general4": general, "lb_rest4": good}, parameters)
        with pytest.raises(VerifierError):
            load_programs(code, {})
        assert len([*descriptors.iterdir()]) == open_before


def test_a_signal_while_the_verifier_works_is_no_refusal(tmp_path: Path) -> None:
    """The kernel gives up with EAGAIN then; a SIGHUP is no reason to refuse what is fine."""
    steps = 'int sum = 0; for (int i = 0; i < 100000; i++) { asm volatile(""); sum += i; }'
    code = compile_body(tmp_path, f"{steps} return sum & 1;")
    came: list[float] = []
    former = signal.signal(signal.SIGALRM, lambda *_: came.append(time.monotonic()))
    try:
        started_s = time.monotonic()
        signal.setitimer(signal.ITIMER_REAL, 0.005)
        program = load_program(code, {})
        ended_s = time.monotonic()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
    os.close(program.fd)
    assert [started_s < at_s < ended_s for at_s in came] == [True]


def test_a_map_that_nobody_gave_is_refused(tmp_path: Path) -> None:
    """A placeholder without a descriptor, known or not, never reaches the kernel."""
    lookup = "__u32 key = 0; return !!bpf_map_lookup_elem((void *)bpf_pseudo_fd(1, {}), &key);"
    known, unknown = placeholder(MAP_NAMES[0]), placeholder(MAP_NAMES[-1]) + 1
    for number in (known, unknown):
        with pytest.raises(DatapathError, match=f"nobody made: {number:#x}"):
            load_program(compile_body(tmp_path, lookup.format(number)), {known + 1: 77})
    code = put_descriptors(compile_body(tmp_path, lookup.format(known)), {known: 77})
    assert known.to_bytes(4, "little") not in code
