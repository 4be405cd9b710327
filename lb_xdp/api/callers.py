"""Who asks: the peer of a unix socket, or the bearer of a token.

Owns names and rights. The socket's mode decides who may connect there, and whoever can may do
everything; over TCP a token does. Tokens are kept as SHA-256 sums, a line each in a file:

    # NAME:SCOPE:SHA256, scope read or write
    grafana:read:5e884898da28047151d0e56f8dc6292773603d0d6aabbdd62a11ef721d1542d8

The file is read again when it has changed, so a token can be taken back without a restart.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import re
import socket
import stat
import struct
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from hmac import compare_digest
from pathlib import Path

from aiohttp import web

from lb_xdp.errors import DeniedError, HostError

_LINE = re.compile(r"([A-Za-z0-9][A-Za-z0-9_.@-]{0,62}):(read|write):([0-9a-fA-F]{64})", re.ASCII)
_CREDENTIALS = struct.Struct("=iII")  # struct ucred of unix(7): pid, uid, gid


@dataclass(frozen=True, slots=True)
class Caller:
    """Whoever asks. ``name`` goes into the records of what was changed."""

    name: str
    may_write: bool


class Tokens:
    """The tokens of a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._held: tuple[tuple[bytes, Caller], ...] = ()
        self._stamp: tuple[int, ...] | None = None

    def load(self) -> None:
        """Read the file if it has changed. Raises HostError with line and remedy."""
        try:
            with self._path.open(encoding="utf-8") as file:
                found = os.fstat(file.fileno())
                stamp = (found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino)
                if stamp == self._stamp:
                    return
                text = file.read()
        except (OSError, UnicodeDecodeError) as error:
            raise HostError(f"gateway.api.tokens: {self._path} cannot be read: {error}") from error
        refuse_open_file("gateway.api.tokens", self._path, found)
        self._held, self._stamp = _parse(text, self._path), stamp

    def caller(self, token: str) -> Caller | None:
        """Return the bearer of a token. Takes the same time for every token (compare_digest)."""
        given = sha256(token.encode("utf-8", "replace")).digest()
        found = None
        for digest, caller in self._held:
            if compare_digest(digest, given):
                found = caller
        return found


def refuse_open_file(key: str, path: Path, found: os.stat_result) -> None:
    """Raise HostError where others could write a file of secrets, or everybody could read it."""
    if found.st_uid not in {0, os.geteuid()}:
        raise HostError(f"{key}: {path} belongs to another user: chown root {path}")
    if found.st_mode & (stat.S_IWGRP | stat.S_IRWXO):
        raise HostError(
            f"{key}: {path} is open to others (mode {stat.S_IMODE(found.st_mode):04o}): "
            f"chmod 0640 {path}"
        )


def _parse(text: str, path: Path) -> tuple[tuple[bytes, Caller], ...]:
    held = []
    for number, line in enumerate(text.splitlines(), 1):
        entry = line.strip()
        if not entry or entry.startswith("#"):
            continue
        match = _LINE.fullmatch(entry)
        if match is None:
            raise HostError(
                f"gateway.api.tokens: {path}:{number}: is no NAME:read:SHA256 or "
                "NAME:write:SHA256; make the sum with: printf %s TOKEN | sha256sum"
            )
        name, scope, digest = match.groups()
        held.append((bytes.fromhex(digest), Caller(f"token {name}", scope == "write")))
    return tuple(held)


class Callers:
    """Tells who sent a request. ``tokens`` is None where only the unix socket is served.

    ``on_stranger`` gets the address of whoever has no token that is known, and what is wrong.
    """

    def __init__(
        self,
        tokens: Tokens | None = None,
        on_stranger: Callable[[str, str], None] = lambda _peer, _why: None,
    ) -> None:
        self._tokens = tokens
        self._on_stranger = on_stranger

    async def of(self, request: web.Request, *, named: bool) -> Caller:
        """Return the caller, without a name where none is needed: looking it up may take a while.

        Raises DeniedError, or HostError if the tokens cannot be read.
        """
        channel = request.get_extra_info("socket")
        if channel is not None and channel.family == socket.AF_UNIX:
            if not named:
                return Caller("", may_write=True)
            raw = channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            # In a thread: the user's name may come from another machine (nsswitch.conf).
            return await asyncio.to_thread(_peer, _CREDENTIALS.unpack(raw)[1])
        try:
            return await self._bearer(request)
        except DeniedError as error:
            self._on_stranger(request.remote or "unknown", str(error))
            raise

    async def _bearer(self, request: web.Request) -> Caller:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if self._tokens is None or scheme.lower() != "bearer" or not token.strip():
            raise DeniedError("a token is needed: Authorization: Bearer TOKEN", known=False)
        await asyncio.to_thread(self._tokens.load)
        caller = self._tokens.caller(token.strip())
        if caller is None:
            raise DeniedError("the token is not known", known=False)
        return caller


def _peer(uid: int) -> Caller:
    """Return the user at the other end, as ``alice (uid 1000)``."""
    try:
        name = f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        name = f"uid {uid}"
    return Caller(name, may_write=True)
