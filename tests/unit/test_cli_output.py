"""What commands and the log look like: the status screen, figures, and log lines."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest

from lb_xdp.cli.logs import JsonFormatter, LogFormat, TextFormatter, setup
from lb_xdp.cli.status_table import duration, percent, quantity, render
from lb_xdp.core.snapshot import Admin, ChangeStatus, FlowTableStatus, OverrideStatus, State
from lb_xdp.errors import LbError
from tests.support.snapshots import NOW_S, SNAPSHOT, TROUBLED, WEB, WEB1, WEB2


@pytest.fixture(autouse=True)
def root_logger() -> Iterator[None]:
    """Give the root logger back as it was: ``run`` sets it up."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.parametrize("columns", [80, 120])
def test_trouble_is_loud(columns: int) -> None:
    """A refused reload and a notice are said in full; wide screens show admin as well."""
    screen = render(TROUBLED, columns=columns, colour=False)
    assert "NOT READY" in screen
    assert "! RELOAD REFUSED 30s ago" in screen
    assert TROUBLED.last_reload.errors[0] in screen
    assert f"! {TROUBLED.notices[0]}" in screen
    assert (" admin " in screen) == (columns == 120)
    assert max(map(len, screen.splitlines())) <= columns


def test_a_change_that_waits_is_loud() -> None:
    """With what would come back, and when; afterwards a notice is all there is."""
    waiting = ChangeStatus(
        "new.yaml", "lb.yaml", "ann", NOW_S, confirm_by_timestamp_s=NOW_S + 45, former="old.yaml"
    )
    shown = render(replace(SNAPSHOT, change=waiting), columns=80, colour=False)
    assert "change    waits to be confirmed, else old.yaml is back in 45s\n" in shown
    settled = replace(waiting, confirm_by_timestamp_s=None)
    assert "waits" not in render(replace(SNAPSHOT, change=settled), columns=80, colour=False)


def test_a_drained_backend_shows_what_was_asked() -> None:
    """In 80 columns too admin is shown where a backend is not simply ready."""
    drained = replace(WEB1, state=State.DRAIN, admin=Admin.DRAIN, detail="since the last reload")
    service = replace(WEB, backends=(drained, *WEB.backends[1:]))
    screen = render(replace(SNAPSHOT, services=(service,)), columns=80, colour=False)
    assert " admin " in screen
    assert "web1: drain for 3h12m: since the last reload" in screen
    assert max(map(len, screen.splitlines())) <= 80


def test_three_layers_are_shown_where_they_differ() -> None:
    """The file, what was asked at run time and until when, and what counts now."""
    drain = OverrideStatus("admin", "drain", "uid 0", "new disks", NOW_S - 60, NOW_S + 300)
    less = OverrideStatus("weight", "50", "ann", "", NOW_S - 60)
    drained = replace(
        WEB1,
        state=State.DRAIN,
        admin=Admin.DRAIN,
        weight=0,
        configured_weight=100,
        overrides=(drain, less),
    )
    ramping = replace(WEB2, weight=90, configured_weight=200, detail="slow start: 90 of 200")
    same = replace(WEB1, name="same", configured_weight=100)
    service = replace(WEB, backends=(drained, ramping, same))
    screen = render(replace(SNAPSHOT, services=(service,)), columns=160, colour=False)
    assert (
        "    file: weight 100; override: drain by uid 0, ends in 5m0s; "
        "override: weight 50 by ann; now: drain, weight 0\n" in screen
    )
    assert "  web2: up for 3h12m: slow start: 90 of 200\n" in screen
    assert "    file: weight 200; now: up, weight 90\n" in screen
    assert "same:" not in screen


def test_long_names_are_folded_not_cut() -> None:
    """Every character of a long name is on the screen, within the columns."""
    long = replace(WEB1, name="abcdefghij" * 6)
    service = replace(WEB, backends=(long,))
    screen = render(replace(SNAPSHOT, services=(service,)), columns=80, colour=False)
    rows = screen.partition("backend ")[2].partition("packets\n")[0]
    assert rows.count("j") == 6
    assert max(map(len, screen.splitlines())) <= 80


def test_a_service_shows_its_family_its_ports_and_what_it_costs() -> None:
    """IPv6 stands in brackets, any port as a word; recorded flows are said with the reason."""
    odd = replace(
        WEB,
        vip="2001:db8::10",
        port=0,
        algorithm="round_robin",
        affinity="client_ip",
        why_tracked="round_robin needs to know every flow",
        backends=(replace(WEB1, address="[2001:db8::11]:80", name="[2001:db8::11]:80"),),
    )
    screen = render(replace(SNAPSHOT, services=(odd,)), columns=80, colour=False)
    assert "web  [2001:db8::10]:any/tcp  nat  round_robin by client_ip  pool web" in screen
    assert "  every flow is recorded: round_robin needs to know every flow\n" in screen
    assert screen.count("[2001:db8::11]:80") == 1
    assert "recorded:" not in render(SNAPSHOT, columns=80, colour=False)


def test_markup_in_names_is_text_and_colour_is_optional() -> None:
    """A name like rich's markup is printed as it is; colours appear only when asked for."""
    odd = replace(SNAPSHOT, services=(replace(WEB, name="[red]x[/red]"),))
    assert "[red]x[/red]" in render(odd, columns=80, colour=False)
    assert "\x1b[" not in render(odd, columns=80, colour=False)
    assert "\x1b[" in render(odd, columns=80, colour=True)


def test_a_gateway_with_nothing_attached() -> None:
    """Without program, packets and flow table the screen says so and leaves the rest out."""
    datapath = replace(
        SNAPSHOT.datapath, programs=(), reasons=(), flow_table=FlowTableStatus(), ring_slots=0
    )
    screen = render(replace(SNAPSHOT, datapath=datapath), columns=80, colour=False)
    assert "NOT ATTACHED" in screen
    assert "flows     " not in screen
    assert "verdict" not in screen


def test_figures_are_short() -> None:
    """Quantities take seven characters at most, shares one decimal, durations two units."""
    assert [quantity(value) for value in (0, 999_999, 1_000_000, 999_949_999, 10**12)] == [
        *("0", "999999", "1.0M", "999.9M", "1.0T")
    ]
    assert quantity(999_960_000) == "1.0G"
    assert len(quantity(2**64 - 1)) <= 7
    assert [percent(1, 3), percent(1, 10**6), percent(0, 5), percent(1, 0)] == [
        *("33.3%", "<0.1%", "0.0%", "-")
    ]
    assert [duration(seconds) for seconds in (-1, 59, 61, 3_600, 90_000)] == [
        *("0s", "59s", "1m1s", "1h0m", "1d1h")
    ]


def record(message: str, **extra: object) -> logging.LogRecord:
    """Return a record as ``logger.info(message, extra=extra)`` makes it."""
    values = {"name": "lb_xdp.x", "levelname": "INFO", "msg": message, "created": 0.0, **extra}
    return logging.makeLogRecord(values)


def test_text_log_is_key_value() -> None:
    """On a terminal a record is one line; values that need it are quoted."""
    line = TextFormatter().format(record("backend down", backend="web1", why="no answer", n=3))
    start = "1970-01-01T00:00:00.000Z INFO backend down "
    assert line == f'{start}backend=web1 why="no answer" n=3'


def test_json_log_is_one_object() -> None:
    """Elsewhere a record is one JSON object, with its extra keys and its traceback."""
    error = LbError("broken")
    exc_info = (LbError, error, None)
    line = JsonFormatter().format(record("failed", backend="web1", exc_info=exc_info))
    document = json.loads(line)
    assert "\n" not in line
    assert "LbError: broken" in document.pop("traceback")
    assert document == {
        "time": "1970-01-01T00:00:00.000Z",
        "level": "info",
        "logger": "lb_xdp.x",
        "message": "failed",
        "backend": "web1",
    }


def test_log_form_follows_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """auto writes text to a terminal and JSON elsewhere; an explicit form wins."""
    for terminal, form, kind in (
        (True, LogFormat.AUTO, TextFormatter),
        (False, LogFormat.AUTO, JsonFormatter),
        (False, LogFormat.TEXT, TextFormatter),
        (True, LogFormat.JSON, JsonFormatter),
    ):
        monkeypatch.setattr(sys.stderr, "isatty", lambda terminal=terminal: terminal)
        setup("info", form)
        assert isinstance(logging.getLogger().handlers[0].formatter, kind)
