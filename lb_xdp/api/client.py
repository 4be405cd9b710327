"""The API's client: one short request at a time.

This module owns finding a daemon and talking to it. It refuses to own the connection
(``connection``) and the user's words: what a command says when there are several daemons is the
CLI's.
"""

from __future__ import annotations

import http.client
import json
import os
import select
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote, urlencode

from lb_xdp.api.connection import Place, SocketFile
from lb_xdp.api.received import decode_snapshot, error_from_json, indented
from lb_xdp.errors import DaemonUnreachableError, LbError

if TYPE_CHECKING:
    from lb_xdp.core.snapshot import Snapshot

SOCKET_NAME = "api.sock"
PING_TIMEOUT_S = 2.0
STATUS_TIMEOUT_S = 10.0
CHANGE_TIMEOUT_S = 60.0  # a reload may compile and verify a program
END_TIMEOUT_S = 10.0


class Client:
    """A daemon: behind a socket file, or at another place.

    Every method raises DaemonUnreachableError when nothing answers there, and LbError with the
    daemon's message and exit code (InvalidConfigError with its problems) when the daemon refuses.
    """

    def __init__(self, place: Place | Path) -> None:
        self.place = SocketFile(place) if isinstance(place, Path) else place

    def ping(self) -> dict[str, Any]:
        """Return the daemon's ``pid`` and ``version``."""
        return self._request("GET", "/v1/ping", PING_TIMEOUT_S)

    def status(self) -> bytes:
        """Return the snapshot as the daemon sent it: JSON, with a line for each value."""
        return indented(self._ask("GET", "/v1/status", STATUS_TIMEOUT_S))

    def snapshot(self) -> Snapshot:
        """Return the snapshot as our own value."""
        return decode_snapshot(self._ask("GET", "/v1/status", STATUS_TIMEOUT_S))

    def events(self, query: Mapping[str, str]) -> list[dict[str, Any]]:
        """Return the events that a query of ``/v1/events`` asks for, oldest first."""
        timeout_s = STATUS_TIMEOUT_S + float(query.get("wait", 0))
        answer = self._request("GET", f"/v1/events?{urlencode(query)}", timeout_s)
        return list(_part(answer, "events"))

    def plan(self, **file: str) -> dict[str, Any]:
        """Return what the ``text`` of ``source`` would change, or the daemon's file without it."""
        return self._request("POST", "/v1/plan", CHANGE_TIMEOUT_S, file)

    def reload(self, **wish: Any) -> dict[str, Any]:
        """Have the daemon go to ``text`` of ``source``, or load its file; return what came of it.

        ``max_moved`` is a share, 0 to 1, ``confirm`` in seconds.
        """
        return self._request("POST", "/v1/reload", CHANGE_TIMEOUT_S, wish)

    def confirm(self) -> str:
        """Keep what a reload has changed; return in a sentence what that is."""
        return str(_part(self._request("POST", "/v1/confirm", CHANGE_TIMEOUT_S), "summary"))

    def roll_back(self) -> str:
        """Undo what a reload has changed; return in a sentence what that is."""
        return str(_part(self._request("POST", "/v1/rollback", CHANGE_TIMEOUT_S), "summary"))

    def flows(self, query: Mapping[str, str]) -> dict[str, Any]:
        """Return the recorded flows that a query of ``/v1/flows`` asks for."""
        return self._request("GET", f"/v1/flows?{urlencode(query)}", STATUS_TIMEOUT_S)

    def pools(self) -> list[dict[str, Any]]:
        """Return all pools in use."""
        return list(_part(self._request("GET", "/v1/pools", STATUS_TIMEOUT_S), "pools"))

    def names(self) -> dict[str, list[str]]:
        """Return the backends' names by service; quick or not at all."""
        return dict(_part(self._request("GET", "/v1/names", PING_TIMEOUT_S), "services"))

    def pool_names(self) -> list[str]:
        """Return the names of all pools in use; quick or not at all."""
        return list(_part(self._request("GET", "/v1/names", PING_TIMEOUT_S), "pools"))

    def detach(self) -> None:
        """Have the daemon remove program and pins, and wait until its process has ended.

        The wait lets ``lb-xdp detach && lb-xdp run`` find the gateway's lock free. The process of
        another host is not waited for.
        """
        with _Ending(self.place) as ending:
            self._request("POST", "/v1/detach", CHANGE_TIMEOUT_S)
            ending.wait()

    def overrides(self) -> list[dict[str, Any]]:
        """Return what was asked of backends at run time and still holds."""
        return _overrides(self._request("GET", "/v1/overrides", STATUS_TIMEOUT_S))

    def set_override(self, service: str, backend: str, **asked: Any) -> list[dict[str, Any]]:
        """Ask for ``admin``, ``weight`` or both, with ``reason`` and ``expires`` (seconds).

        Returns what then holds of the backend.
        """
        target = _override(service, backend)
        return _overrides(self._request("PUT", target, CHANGE_TIMEOUT_S, asked))

    def clear_override(self, service: str, backend: str, kind: str = "") -> list[dict[str, Any]]:
        """Let the file hold again, for ``admin`` or ``weight`` alone if so; return what ended."""
        target = _override(service, backend) + (f"?kind={kind}" if kind else "")
        return _overrides(self._request("DELETE", target, CHANGE_TIMEOUT_S))

    def clear_overrides(self) -> list[dict[str, Any]]:
        """Let the file hold again for all backends; return what ended."""
        return _overrides(self._request("DELETE", "/v1/overrides", CHANGE_TIMEOUT_S))

    def _request(
        self, method: str, target: str, timeout_s: float, body: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Send one request and return the JSON object of its answer."""
        return _parse(self._ask(method, target, timeout_s, body), HTTPStatus.OK)

    def _ask(
        self, method: str, target: str, timeout_s: float, body: dict[str, Any] | None = None
    ) -> bytes:
        """Send one request and return its answer, which is no refusal."""
        connection, headers = self.place.connection(timeout_s), self.place.headers()
        if body is not None:
            headers["Content-Type"] = "application/json"
        try:
            text = None if body is None else json.dumps(body)
            connection.request(method, target, text, headers)
            response = connection.getresponse()
            status, answer = response.status, response.read()
        except (OSError, http.client.HTTPException) as error:
            raise self.place.unreachable(error) from error
        finally:
            connection.close()
        if status != HTTPStatus.OK:
            raise error_from_json(_parse(answer, status))
        return answer


def _override(service: str, backend: str) -> str:
    return f"/v1/overrides/{quote(service, safe='')}/{quote(backend, safe='')}"


def _overrides(document: dict[str, Any]) -> list[dict[str, Any]]:
    return list(_part(document, "overrides"))


def _part(document: dict[str, Any], key: str) -> Any:
    """Return a value of an answer. Raises LbError when it is not there."""
    if key not in document:
        raise LbError(f"the daemon's answer has no {key}: another version?")
    return document[key]


class _Ending:
    """Waits for the daemon behind a socket to end, where its process is ours to see."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._pidfd = -1

    def __enter__(self) -> Self:
        if not isinstance(self._place, SocketFile):
            return self
        connection = self._place.connection(PING_TIMEOUT_S)
        try:
            connection.connect()
            pid = connection.peer_pid()
            if pid not in {0, os.getpid()}:
                self._pidfd = os.pidfd_open(pid)
        except OSError as error:
            raise self._place.unreachable(error) from error
        finally:
            connection.close()
        return self

    def __exit__(self, *_exception: object) -> None:
        if self._pidfd >= 0:
            os.close(self._pidfd)

    def wait(self) -> None:
        """Return when the process has ended, or after END_TIMEOUT_S."""
        if self._pidfd >= 0:
            select.select([self._pidfd], [], [], END_TIMEOUT_S)


def _parse(body: bytes, status: int) -> dict[str, Any]:
    """Return the JSON object in ``body``; an answer of another kind becomes an error document."""
    try:
        document = json.loads(body)
    except ValueError:
        document = None
    if isinstance(document, dict):
        return document
    text = body.decode(errors="replace").strip()[:200]
    return {"error": f"the daemon answered {status}: {text}; its log says more"}


def socket_of(name: str, run_directory: Path) -> Path:
    """Return where the daemon of gateway ``name`` answers, unless configured otherwise."""
    return run_directory / name / SOCKET_NAME


def answering(run_directory: Path) -> dict[str, Path]:
    """Return the sockets that a daemon answers on, by gateway name, in the order of the names.

    Raises DaemonUnreachableError when none answers but one is closed to this user.
    """
    found: dict[str, Path] = {}
    forbidden: DaemonUnreachableError | None = None
    for path in sorted(run_directory.glob(f"*/{SOCKET_NAME}")):
        try:
            Client(path).ping()
        except DaemonUnreachableError as error:
            if isinstance(error.__cause__, PermissionError):
                forbidden = error
            continue
        found[path.parent.name] = path
    if forbidden and not found:
        raise forbidden
    return found
