"""The systemd unit as tests use it: what it says, and its privileges without systemd."""

from __future__ import annotations

import re
from pathlib import Path

UNIT = Path(__file__).parents[2] / "docs" / "lb-xdp@.service"


def directive(name: str) -> list[str]:
    """Return the words of a directive of the unit."""
    found = re.search(rf"^{name}=(.*)$", UNIT.read_text(), re.MULTILINE)
    return found[1].split() if found else []


def confined(*identity: str) -> tuple[str, ...]:
    """Return the command that runs another with the unit's capabilities, as root in name only."""
    names = [word.removeprefix("CAP_").lower() for word in directive("CapabilityBoundingSet")]
    held = ",".join(["-all", *(f"+{name}" for name in names)])
    sets = ("--bounding-set", held, "--inh-caps", held)
    ambient = ("--ambient-caps", held) if identity else ()
    return ("setpriv", "--no-new-privs", *identity, *sets, *ambient)
