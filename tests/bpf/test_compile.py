"""The compiler child: every way in which C can be wrong comes back as a CompileError."""

from __future__ import annotations

from pathlib import Path

import pytest

from lb_xdp.core.model import Address, Mode
from lb_xdp.datapath.blueprint import compile_ahead, draw
from lb_xdp.datapath.compile import Parameters, compile_gateway, compile_source
from lb_xdp.datapath.headers import find_headers
from lb_xdp.errors import CompileError
from tests.support.program import VIP, VIP6, LoadedProgram, Wire, service

_HEAD = "#include <uapi/linux/bpf.h>\n"


def compile_text(folder: Path, text: str, *cflags: str) -> bytes:
    source = folder / "wrong.c"
    source.write_text(_HEAD + text)
    return compile_source(source, list(cflags), "lb_gateway")


def test_a_mistake_is_shown_with_file_and_line(tmp_path: Path) -> None:
    """The error names the file and the line of the first mistake, and keeps the whole output."""
    with pytest.raises(CompileError) as caught:
        compile_text(tmp_path, "int lb_gateway(struct xdp_md *ctx)\n{\n\treturn nothing;\n}\n")
    error = caught.value
    assert (Path(error.file).name, error.line) == ("wrong.c", 4)
    assert str(error).startswith(f"{tmp_path / 'wrong.c'}:4: ")
    assert "nothing" in str(error)
    assert "nothing" in error.output


def test_a_mistake_in_a_header_is_shown_there(tmp_path: Path) -> None:
    """An error in an included file names that file."""
    (tmp_path / "inner.h").write_text("\nint 5;\n")
    with pytest.raises(CompileError) as caught:
        compile_text(tmp_path, '#include "inner.h"\n', f"-I{tmp_path}")
    assert (Path(caught.value.file).name, caught.value.line) == ("inner.h", 2)


@pytest.mark.parametrize(
    "body",
    [
        # More stack than 512 bytes: LLVM ends the whole process.
        "volatile char big[600]; for (int i = 0; i < 600; i++) big[i] = i; return big[5];",
        # An atomic that BPF lacks: LLVM aborts.
        "static __u32 x; return __sync_fetch_and_add(&x, 1) + __atomic_load_n(&x, 5);",
    ],
    ids=["stack", "atomic"],
)
def test_a_compiler_that_dies_is_an_error_too(tmp_path: Path, body: str) -> None:
    """What ends the compiler's process does not end ours."""
    with pytest.raises(CompileError) as caught:
        compile_text(tmp_path, f"int lb_gateway(struct xdp_md *ctx) {{ {body} }}\n")
    assert "wrong.c" in str(caught.value)


def test_only_what_is_used_is_compiled() -> None:
    """A gateway without nat has a smaller program than one with both modes."""
    sizes = {"filter_bits": 9, "bucket_bits": 6, "bucket6_bits": 6, "hz": 250}
    both = compile_gateway(Parameters(frozenset({"IPV4", "NAT", "DSR", "FLOWS"}), **sizes))
    only_dsr = compile_gateway(Parameters(frozenset({"IPV4", "DSR"}), **sizes))
    assert len(only_dsr.gateway) < len(both.gateway)
    assert len(both.gateway) % 8 == 0
    assert only_dsr.general.keys() == {"lb_general4", "lb_rest4"}


def test_missing_headers_are_an_error_with_its_remedy(tmp_path: Path) -> None:
    """Where no headers are at all the message says what to install."""
    with pytest.raises(CompileError, match="apt install linux-headers"):
        find_headers(tmp_path)


def test_the_newest_generic_headers_serve(tmp_path: Path) -> None:
    """Without headers of the running kernel the newest others are taken, by number not by text."""
    for version in ("6.1.0-9-amd64", "6.1.0-31-amd64"):
        (tmp_path / f"usr/src/linux-headers-{version}/include/generated").mkdir(parents=True)
    found = find_headers(tmp_path)
    assert (found.path.name, found.exact) == ("linux-headers-6.1.0-31-amd64", False)


@pytest.mark.parametrize("vip", [VIP, VIP6])
def test_what_was_compiled_ahead_is_what_a_plan_needs(wire: Wire, vip: Address) -> None:
    """Tables have the same shape whatever they hold of backends and rings."""
    services = [service(Mode.NAT, 80 + n, vip=vip, backend_port=8080) for n in range(40)]
    with LoadedProgram(wire, *services) as loaded:
        compile_gateway.cache_clear()
        compile_ahead(loaded.plan.structure)
        draw(loaded.plan)
    found = compile_gateway.cache_info()
    assert (found.misses, found.hits) == (1, 1)
