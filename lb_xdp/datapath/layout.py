"""Python's view of the C headers in ``bpf/``, read from them: structs, constants, reasons.

The headers are the one truth of the ABI. A struct becomes a numpy dtype whose big-endian fields
(``__be16``, ``__be32``) convert by themselves, so the rest of the program sees host-order integers.
A header that this small parser does not understand, or a size that differs from the C side's
``LB_SIZE``, is an error at import: better there than in a map.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from lb_xdp.core.snapshot import Verdict
from lb_xdp.errors import DatapathError

_SCALARS = {
    "__u8": "u1",
    "__u16": "=u2",
    "__u32": "=u4",
    "__u64": "=u8",
    "__be16": ">u2",
    "__be32": ">u4",
}
_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
_STRUCT = re.compile(r"struct (\w+) \{(.*?)\};", re.DOTALL)
_FIELD = re.compile(r"^(?:struct )?(\w+) (\w+)(?:\[(\w+)\])?$")
_SIZE = re.compile(r"LB_SIZE\((\w+), (\d+)\);")
_DEFINE = re.compile(r"^#define (LB_\w+) (\d+)\b(?!.*\()", re.MULTILINE)
_REASON = re.compile(r'X\((\w+),\s*(PASS|FORWARD|DROP),\s*"(.*?)"\)')


def source_dir() -> Path:
    """Return the folder of the C sources: inside the package when installed, beside it in a
    checkout.
    """  # noqa: D205 - one sentence
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "_bpf", package.parent / "bpf"):
        if (folder / "lb_xdp.c").is_file():
            return folder
    raise DatapathError(f"the C sources are missing beside {package}: install lb_xdp again")


@dataclass(frozen=True, slots=True)
class Reason:
    """One line of ``lb_reason.h``. ``index`` is its place in the counter map."""

    index: int
    name: str
    verdict: Verdict
    meaning: str


@dataclass(frozen=True, slots=True)
class Layout:
    """Everything that the headers declare."""

    constants: dict[str, int]
    structs: dict[str, np.dtype[np.void]]
    reasons: tuple[Reason, ...]

    @property
    def version(self) -> int:
        """Return ``LB_LAYOUT``: of the pins of another one ``estate`` says what is of use."""
        return self.constants["LB_LAYOUT"]


def _field_dtype(
    kind: str, count: str | None, layout: Layout
) -> tuple[object, tuple[int, ...]] | None:
    base: object = _SCALARS.get(kind) or layout.structs.get(kind)
    if base is None:
        return None
    if count is None:
        return base, ()
    return base, (int(count) if count.isdigit() else layout.constants[count],)


def _parse_struct(name: str, body: str, layout: Layout) -> np.dtype[np.void]:
    fields = []
    for declaration in filter(None, (part.strip() for part in body.split(";"))):
        match = _FIELD.match(declaration)
        parsed = _field_dtype(match[1], match[3], layout) if match else None
        if match is None or parsed is None:
            raise DatapathError(f"lb_types.h: struct {name}: cannot read `{declaration}`")
        fields.append((match[2], parsed[0], parsed[1]))
    return np.dtype(fields)


def parse_layout(types_h: str, reason_h: str) -> Layout:
    """Parse the two headers. Raises DatapathError where C and Python would disagree."""
    constants = {name: int(value) for name, value in _DEFINE.findall(types_h)}
    reasons = tuple(
        Reason(index, name, Verdict[verdict], meaning)
        for index, (name, verdict, meaning) in enumerate(_REASON.findall(reason_h))
    )
    layout = Layout(constants, {}, reasons)
    text = _COMMENT.sub("", types_h)
    sizes = {name: int(size) for name, size in _SIZE.findall(text)}
    for name, body in _STRUCT.findall(text):
        dtype = _parse_struct(name, body, layout)
        if sizes.get(name) != dtype.itemsize:
            raise DatapathError(
                f"lb_types.h: struct {name} is {dtype.itemsize} bytes in Python, "
                f"{sizes.get(name, 'not asserted')} in C"
            )
        layout.structs[name] = dtype
    return layout


@cache
def layout() -> Layout:
    """Return the layout of the C sources that this package would compile."""
    folder = source_dir()
    return parse_layout(
        (folder / "lb_types.h").read_text(encoding="utf-8"),
        (folder / "lb_reason.h").read_text(encoding="utf-8"),
    )
