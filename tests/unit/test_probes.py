"""Probes against small servers on loopback, and the schedule of the prober."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from itertools import pairwise
from random import Random

import pytest

from lb_xdp.core.check import HttpCheck, StatusRange
from lb_xdp.core.health import ProbeResult, Target
from lb_xdp.core.model import CheckKind, HealthCheck
from lb_xdp.probes import Prober, dial
from tests.support import pace
from tests.support.probing import HERE, probe

TCP = HealthCheck(CheckKind.TCP, interval_s=0.02, timeout_s=1.0, jitter=0.0)
HTTP = HealthCheck(
    CheckKind.HTTP, interval_s=0.02, timeout_s=1.0, jitter=0.0, http=HttpCheck(path="/healthz")
)

Answer = Callable[[asyncio.StreamWriter], Coroutine[None, None, None]]


class Server:
    """A listener that reads one request head per connection and answers as it is told."""

    def __init__(self, answer: Answer) -> None:
        self.requests: list[str] = []
        self.asked = asyncio.Event()
        self.port = 0
        self._answer = answer
        self._connections: set[asyncio.Task[None]] = set()

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(asyncio.create_task(self._serve(reader, writer)))

    async def end(self) -> None:
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            self.requests.append((await reader.readuntil(b"\r\n\r\n")).decode())
            self.asked.set()
            await self._answer(writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def listening(answer: Answer) -> AsyncIterator[Server]:
    """Run a server on a free port; end its connections with it."""
    server = Server(answer)
    async with await asyncio.start_server(server.accept, str(HERE), 0) as listener:
        server.port = listener.sockets[0].getsockname()[1]
        try:
            yield server
        finally:
            await server.end()


def saying(text: str | bytes) -> Answer:
    """Answer with these bytes."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(text if isinstance(text, bytes) else text.encode())
        await writer.drain()

    return answer


async def silence(_writer: asyncio.StreamWriter) -> None:
    """Never answer."""
    await asyncio.Event().wait()


async def endless_body(writer: asyncio.StreamWriter) -> None:
    """Answer 200 and go on talking for ever."""
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        writer.write(bytes(4096))
        await writer.drain()


async def stuck_body(writer: asyncio.StreamWriter) -> None:
    """Answer 200 and stop in the middle of the body."""
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
    await asyncio.Event().wait()


def unused_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind((str(HERE), 0))
        return int(probe.getsockname()[1])


async def test_tcp_probe_finds_a_listener_and_spares_its_application() -> None:
    """A probe succeeds on the answer to its SYN, and the process behind accepts no connection."""
    with closing(socket.create_server((str(HERE), 0))) as listener:
        listener.settimeout(0)
        port = listener.getsockname()[1]
        results = [await probe(TCP, port) for _ in range(5)]
        assert {(result.ok, result.detail) for result in results} == {(True, "connected")}
        with pytest.raises(BlockingIOError):
            listener.accept()


async def test_tcp_probe_says_refused_where_nothing_listens() -> None:
    """A closed port is a failure in plain words."""
    result = await probe(TCP, unused_port())
    assert (result.ok, result.detail) == (False, "connection refused")


async def test_tcp_probe_gives_up_on_a_listener_that_takes_no_more() -> None:
    """A full accept queue swallows SYNs; the probe ends at its timeout and says so."""
    check = replace(TCP, timeout_s=0.05)
    with closing(socket.create_server((str(HERE), 0), backlog=0)) as listener:
        port = listener.getsockname()[1]
        with closing(socket.create_connection((str(HERE), port))):
            result = await probe(check, port)
    assert (result.ok, result.detail) == (False, "timed out after 0.05 s")
    assert 0.05 <= result.duration_s < 0.5


@pytest.mark.parametrize(
    ("answer", "ok", "detail"),
    [
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", True, "200 OK"),
        ("HTTP/1.0 204 Fine\r\n\r\n", True, "204 No Content"),
        (
            "HTTP/1.1 302 Found\r\nLocation: http://192.0.2.1/\r\nContent-Length: 0\r\n\r\n",
            True,
            "302 Found",
        ),
        ("HTTP/1.1 299 Odd\r\nContent-Length: 0\r\n\r\n", True, "299"),
        (
            "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
            False,
            "404 Not Found, expected 200-399",
        ),
        (
            "HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n",
            False,
            "503 Service Unavailable, expected 200-399",
        ),
        ("", False, "connection closed without an answer"),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf",
            False,
            "connection closed in the middle of the answer",
        ),
    ],
)
async def test_http_probe_judges_the_status(answer: str, ok: bool, detail: str) -> None:  # noqa: FBT001 - a table's column
    """The status decides, redirects are answers like others, half an answer is none."""
    async with listening(saying(answer)) as server:
        result = await probe(HTTP, server.port)
    assert (result.ok, result.detail) == (ok, detail)


@pytest.mark.parametrize(
    "garbage",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x16\x03\x01\x00\xa5\x01\x00\x00" * 8,
        b"HTTP/1.1 two hundred\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"x" * 100_000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"\0" * 5000,
    ],
)
async def test_http_probe_calls_garbage_by_its_name(garbage: bytes) -> None:
    """Whatever answers, the probe fails with one short printable line and raises nothing."""
    async with listening(saying(garbage)) as server:
        result = await probe(HTTP, server.port)
    assert not result.ok
    assert result.detail.startswith(("not HTTP: ", "connection closed"))
    assert result.detail.isprintable()
    assert len(result.detail) < 80


async def test_http_probe_names_the_statuses_that_it_expected() -> None:
    """With expected statuses of its own a check refuses others, and lists what it wants."""
    wanted = (StatusRange(200, 200), StatusRange(401, 403))
    check = replace(HTTP, http=HttpCheck(expected_status=wanted))
    async with listening(saying("HTTP/1.1 301 Moved\r\nContent-Length: 0\r\n\r\n")) as server:
        result = await probe(check, server.port)
    assert result.detail == "301 Moved Permanently, expected 200, 401-403"


@pytest.mark.parametrize("answer", [silence, stuck_body])
async def test_http_probe_ends_at_its_timeout(answer: Answer) -> None:
    """A backend that accepts and never ends its answer fails within the check's timeout."""
    async with listening(answer) as server:
        result = await probe(replace(HTTP, timeout_s=0.05), server.port)
    assert (result.ok, result.detail) == (False, "timed out after 0.05 s")
    assert 0.05 <= result.duration_s < 0.5


async def test_http_probe_reads_no_more_of_the_body_than_it_must() -> None:
    """An endless body ends the probe in success at the limit, long before the timeout."""
    async with listening(endless_body) as server:
        result = await probe(replace(HTTP, timeout_s=5.0), server.port)
    assert (result.ok, result.detail) == (True, "200 OK")
    assert result.duration_s < 1.0


async def test_http_probe_asks_as_configured_and_remembers_nothing() -> None:
    """Path and Host come from the check, cookies do not come back, nothing is kept open."""
    answer = saying("HTTP/1.1 200 OK\r\nSet-Cookie: a=b\r\nContent-Length: 0\r\n\r\n")
    odd = HttpCheck(path="/a ?b=%2F", host_header="www.example.org")
    async with listening(answer) as server:
        for check in (HTTP, replace(HTTP, http=odd)):
            await probe(check, server.port)
    first, second = (request.lower().split("\r\n") for request in server.requests)
    assert first[0] == "get /healthz http/1.1"
    assert f"host: 127.0.0.1:{server.port}" in first
    assert second[0] == "get /a%20?b=%2f http/1.1"
    assert "host: www.example.org" in second
    for request in (first, second):
        assert "connection: close" in request
        assert not any(line.startswith("cookie") for line in request)


async def test_http_probe_says_refused_where_nothing_listens() -> None:
    """A closed port reads the same for HTTP as for TCP."""
    result = await probe(HTTP, unused_port())
    assert (result.ok, result.detail) == (False, "connection refused")


class Results:
    """Collects results and lets a test wait for them."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, ProbeResult]] = []
        self._news = asyncio.Event()

    def __call__(self, target_id: str, result: ProbeResult) -> None:
        self.seen.append((target_id, result))
        self._news.set()

    def of(self, target_id: str) -> list[ProbeResult]:
        return [result for name, result in self.seen if name == target_id]

    async def wait(self, target_id: str, count: int) -> list[ProbeResult]:
        async with asyncio.timeout(5):
            while len(self.of(target_id)) < count:
                self._news.clear()
                await self._news.wait()
        return self.of(target_id)


async def test_prober_starts_at_once_and_keeps_time_however_long_probes_take() -> None:
    """The first probe does not wait for an interval, and slow answers do not shift later ones."""

    async def slow(writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.06)
        await saying("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")(writer)

    results = Results()
    began_s = time.monotonic()
    async with listening(slow) as server, Prober(results) as prober:
        prober.set_targets({"a": Target(replace(HTTP, interval_s=0.2), HERE, server.port)})
        seen = await results.wait("a", 6)
    starts_s = [result.at_s - result.duration_s - began_s for result in seen]
    late_s = [start_s - 0.2 * number for number, start_s in enumerate(starts_s)]
    assert min(late_s) >= 0
    assert late_s[0] < 0.2
    # A busy machine may be late with any of them; a schedule that answers shift is with each, more
    # and more: by 0.18 s with the fourth.
    assert min(late_s[3:]) < 0.12


async def test_prober_never_overlaps_probes_of_one_target() -> None:
    """A probe that outlasts its interval delays the next one, and others go on undisturbed."""
    results = Results()
    hanging = replace(HTTP, timeout_s=0.1, interval_s=0.01)
    async with listening(silence) as server, Prober(results) as prober:
        prober.set_targets(
            {"hanging": Target(hanging, HERE, server.port), "refused": Target(TCP, HERE, 1)}
        )
        seen = await results.wait("hanging", 3)
        others = results.of("refused")
    for former, latter in pairwise(seen):
        assert latter.at_s - latter.duration_s >= former.at_s
    assert len(others) >= 7


async def test_prober_touches_only_targets_that_differ() -> None:
    """Unchanged targets keep their schedule, removed ones fall silent, changed ones start anew."""
    results = Results()
    rarely = replace(TCP, interval_s=60.0)
    kept, changed = Target(rarely, HERE, 1), Target(rarely, HERE, 2)
    async with Prober(results) as prober:
        prober.set_targets({"kept": kept, "changed": changed, "removed": Target(TCP, HERE, 3)})
        for name in ("kept", "changed", "removed"):
            await results.wait(name, 1)
        removed_before = len(results.of("removed"))
        prober.set_targets(
            {"kept": kept, "changed": replace(changed, port=4), "new": Target(TCP, HERE, 5)}
        )
        await results.wait("changed", 2)
        await results.wait("new", 5)
        assert set(prober.targets) == {"kept", "changed", "new"}
    assert len(results.of("kept")) == 1
    assert len(results.of("removed")) == removed_before


async def test_prober_leaves_targets_without_a_check_alone() -> None:
    """``health: none`` is never probed."""
    results = Results()
    async with Prober(results) as prober:
        prober.set_targets({"none": Target(HealthCheck(CheckKind.NONE), HERE, 1)})
        assert prober.targets == {}
    assert results.seen == []


async def test_prober_probes_at_once_when_told() -> None:
    """Long before the next probe is due; what it does not probe it leaves alone."""
    results: asyncio.Queue[str] = asyncio.Queue()
    check = replace(TCP, interval_s=3600)
    async with asyncio.timeout(10), Prober[str](lambda name, _: results.put_nowait(name)) as prober:
        prober.set_targets({"web": Target(check, HERE, unused_port())})
        for _ in range(3):
            assert await results.get() == "web"
            await asyncio.sleep(0)  # the probe's task goes on to wait
            prober.probe_now("web")
            prober.probe_now("nobody")


async def test_prober_ends_in_the_middle_of_probes() -> None:
    """Closing waits for no answer."""
    results = Results()
    endless = replace(HTTP, timeout_s=60.0)
    async with (
        asyncio.timeout(pace.lasting(10)),
        listening(silence) as server,
        Prober(results) as prober,
    ):
        prober.set_targets({"a": Target(endless, HERE, server.port)})
        await server.asked.wait()
    assert results.seen == []


async def test_prober_lets_a_mistake_in_the_callback_out() -> None:
    """An exception of the callback is a bug of the caller's and ends the block that it is in."""

    def callback(_target: str, _result: ProbeResult) -> None:
        raise LookupError("mistake")

    async def probe_for_ever() -> None:
        async with Prober(callback) as prober:
            prober.set_targets({"a": Target(TCP, HERE, 1)})
            await asyncio.Event().wait()

    with pytest.raises(ExceptionGroup) as caught:
        await probe_for_ever()
    assert caught.group_contains(LookupError, match="mistake")


async def test_prober_lets_errors_of_its_block_through_as_they_are() -> None:
    """What goes wrong inside the block is not wrapped, so that callers can tell errors apart."""
    with pytest.raises(LookupError, match="of the block"):
        async with Prober[str](lambda _name, _result: None):
            raise LookupError("of the block")


def test_intervals_vary_by_the_jitter_and_not_more() -> None:
    """Drawn intervals fill the range of interval times one minus to one plus jitter."""
    prober = Prober[str](lambda _name, _result: None, random=Random(1))
    check = replace(TCP, interval_s=2.0, jitter=0.25)
    drawn_s = [prober._draw_interval_s(2.0, check) for _ in range(1000)]
    assert 1.5 <= min(drawn_s) < 1.52
    assert 2.48 < max(drawn_s) <= 2.5


async def test_the_pace_is_asked_for_after_each_result() -> None:
    """Whoever knows the health says when the next probe is due, from one probe to the next."""
    results, asked = Results(), list[int]()

    def pace(target_id: str, check: HealthCheck) -> float:
        assert (target_id, check) == ("a", slow)
        asked.append(len(results.seen))
        return 0.02 if len(results.seen) < 5 else 60.0

    slow = replace(TCP, interval_s=30.0)
    async with Prober(results, pace=pace) as prober:
        prober.set_targets({"a": Target(slow, HERE, 1)})
        await results.wait("a", 5)
    assert asked[:4] == [1, 2, 3, 4]


async def test_who_is_in_a_hurry_can_have_a_probe_at_once() -> None:
    """A target that waits is probed now; one that is unknown, or under way, is left alone."""
    results = Results()
    rarely = replace(TCP, interval_s=60.0)
    async with Prober(results) as prober:
        prober.set_targets({"a": Target(rarely, HERE, 1)})
        for count in range(1, 4):
            await results.wait("a", count)
            prober.probe_now("nobody")
            while len(results.of("a")) == count:
                prober.probe_now("a")
                await asyncio.sleep(0)
        assert prober.begins_within_s == 0


async def test_targets_that_are_set_at_once_are_spread() -> None:
    """First probes follow one another shortly; second ones come evenly, over a whole interval."""
    results, count, interval_s = Results(), 50, 1.0
    began_s = time.monotonic()
    async with Prober(results) as prober:
        check = replace(TCP, interval_s=interval_s)
        prober.set_targets({str(n): Target(check, HERE, 1) for n in range(count)})
        assert 0 < prober.begins_within_s < 0.1 * interval_s
        for number in range(count):
            await results.wait(str(number), 2)
    starts_s = [results.of(str(n))[1].at_s - began_s for n in range(count)]
    for number, start_s in enumerate(starts_s):
        due_s = interval_s * (0.5 + (number + 0.5) / count)
        assert due_s <= start_s < due_s + 0.3


async def test_those_whose_health_is_known_are_probed_at_leisure() -> None:
    """Nobody waits for their first results: the others' come first, theirs over the interval."""
    results, count, interval_s = Results(), 20, 1.0
    began_s = time.monotonic()
    async with Prober(results) as prober:
        check = replace(TCP, interval_s=interval_s)
        targets = {str(n): Target(check, HERE, 1) for n in range(count)}
        prober.set_targets({**targets, "new": Target(check, HERE, 1)}, known=targets)
        assert prober.begins_within_s < 0.01
        for name in ("new", *targets):
            await results.wait(name, 1)
    for number in range(count):
        start_s = results.of(str(number))[0].at_s - began_s
        assert interval_s * number / count <= start_s < interval_s * number / count + 0.3


async def test_the_way_of_a_target_explains_its_failures() -> None:
    """A dial opens the sockets and has the last word on what a failure means."""

    class Elsewhere(dial.Direct):
        def explain(self, port: int, detail: str) -> str:
            return f"{detail}, by another way to {port}"

    results = Results()
    async with Prober(results, dial_of=lambda _name: Elsewhere()) as prober:
        prober.set_targets({"a": Target(TCP, HERE, 1)})
        (result, *_) = await results.wait("a", 1)
    assert result.detail == "connection refused, by another way to 1"
