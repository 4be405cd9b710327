"""What the rings in the kernel were made from, kept for the daemon that starts next.

Owns ``rings.json`` beside ``state.json``: a proof (``core.proof``) for each service. It is no
state: without it, or with an old one, a start builds the rings that it cannot account for, and
finds that they are what the kernel has. So nothing is lost when it cannot be written or read.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from lb_xdp import disk
from lb_xdp.core.desired import BackendId
from lb_xdp.core.model import ServiceKey
from lb_xdp.core.plan import Observed
from lb_xdp.core.proof import Proof, proven, slots_of, source_of
from lb_xdp.core.settle import RingImage

_log = logging.getLogger(__name__)

_NAME = "rings.json"


class RingBook:
    """Belongs to one gateway; ``write`` may run in any thread."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / _NAME
        self._lock = threading.Lock()
        self._digests: dict[ServiceKey, tuple[RingImage, bytes | None]] = {}

    def completed(self, observed: Observed) -> Observed:
        """Return what was read from the kernel, with what is known of where its rings come from."""
        kept = self._read()
        named = {key: kept[str(key)] for key in observed.rings if str(key) in kept}
        return replace(observed, proven=proven(named, observed.rings))

    def _read(self) -> dict[str, Proof]:
        try:
            document = json.loads(self._path.read_text(encoding="utf-8"))
            return {
                name: Proof(bytes.fromhex(source), bytes.fromhex(slots))
                for name, (source, slots) in document.items()
            }
        except FileNotFoundError:
            return {}
        except (OSError, AttributeError, TypeError, ValueError) as error:
            _log.debug("%s is of no use: %s", self._path, error)
            return {}

    def write(self, observed: Observed) -> None:
        """Write down the rings of a goal that was reached."""
        with self._lock:
            self._write(observed)

    def _write(self, observed: Observed) -> None:
        pages = {
            str(key): (proof.source.hex(), proof.slots.hex())
            for key, proof in self._proofs(observed).items()
        }
        try:
            disk.replace(self._path, json.dumps(pages), lasting=False)  # it can be done without
        except OSError as error:
            _log.debug("%s cannot be written: %s", self._path, error)

    def _proofs(self, observed: Observed) -> Mapping[ServiceKey, Proof]:
        found, digests = {}, {}
        for key, ring in observed.applied.rings.items() if observed.applied else ():
            image = observed.rings[key]
            known = self._digests.get(key)
            digests[key] = known if known and known[0] is image else (image, slots_of(image))
            slots = digests[key][1]
            if slots is not None:
                indices = (observed.indices[BackendId(key, backend)] for backend in ring.keys)
                found[key] = Proof(source_of(ring, indices), slots)
        self._digests = digests
        return found
