"""``python -m lb_xdp`` is the command ``lb-xdp``."""

from __future__ import annotations

from lb_xdp.cli import main

if __name__ == "__main__":
    main(prog_name="lb-xdp")
