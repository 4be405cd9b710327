"""The compiler: BCC in a process of its own, and the only file that imports ``bcc``.

Some C errors end the whole Python process (docs/decisions/0001), and BCC keeps what it allocated;
so a child compiles, prints the instructions and is gone. It owns nothing else: no map is made and
nothing is loaded here, which is why it needs no privilege.

In: JSON on stdin, ``{"source": path, "cflags": [...], "functions": [name, ...]}``.
Out: JSON on stdout, ``{"instructions": {name: hex}}``; compiler text goes to stderr; exit 0, or 3
when bcc cannot be imported, or whatever a compiler that aborts leaves.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

EXIT_NO_BCC = 3


def main() -> int:
    """Compile what stdin asks for. BCC exports the functions of the main text only, so the entry
    file is that text; its headers come from the same folder by ``-I``.
    """  # noqa: D205 - two sentences that belong together
    request = json.load(sys.stdin)
    try:
        from bcc import BPF  # noqa: PLC0415 - to tell "no bcc" from other failures
    except ImportError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_NO_BCC
    source = Path(request["source"])
    text = f'#line 1 "{source}"\n' + source.read_text(encoding="utf-8")
    program = BPF(text=text, cflags=request["cflags"])
    found = {name: program.dump_func(name.encode()).hex() for name in request["functions"]}
    json.dump({"instructions": found}, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
