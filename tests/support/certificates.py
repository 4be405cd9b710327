"""A certificate authority of the tests' own, made by openssl."""

from __future__ import annotations

import subprocess
from pathlib import Path

_DAYS = "30"


class Authority:
    """A CA in a folder, and what it signs. Keys are on elliptic curves, which are quick to make."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self.certificate = folder / f"{name}.pem"
        self._key = folder / f"{name}.key"
        _openssl("req", "-x509", *_new_key(self._key), "-subj", f"/CN=test {name}",
                 "-out", str(self.certificate), "-days", _DAYS)  # fmt: skip

    def sign(self, name: str, subject: str, *, days: str = _DAYS) -> tuple[Path, Path]:
        """Return certificate and key for ``subject``, such as ``DNS:www.example.net``."""
        certificate, key = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        request, names = self._folder / f"{name}.csr", self._folder / f"{name}.ext"
        names.write_text(f"subjectAltName={subject}\n")
        _openssl("req", *_new_key(key), "-subj", f"/CN={name}", "-out", str(request))
        _openssl("x509", "-req", "-in", str(request), "-CA", str(self.certificate),
                 "-CAkey", str(self._key), "-CAcreateserial", "-days", days,
                 "-extfile", str(names), "-out", str(certificate))  # fmt: skip
        return certificate, key


def _new_key(path: Path) -> tuple[str, ...]:
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256")
    return (*curve, "-nodes", "-keyout", str(path))


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=60)
