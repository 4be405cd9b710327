"""A text that is read again: equal to a fresh reading, and the same where nothing changed."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lb_xdp.config.reference import EXAMPLE
from lb_xdp.config.reread import Reading, read_again
from lb_xdp.config.whole import read_whole
from lb_xdp.core.model import Config
from lb_xdp.core.wish import digest
from lb_xdp.errors import ConfigProblem, InvalidConfigError

GATEWAY = """---
# The gateway & its pools
gateway:
  interfaces: [eth0]
  snat_addresses:
    - 192.0.2.1

"""
POOLS = """pools:
  # As many as there are.
  - name: web
    health: {type: http, path: "/ready?a=1&b=2"}
    backends:
      - {host: 10.0.0.11, port: 80}
      - host: 10.0.0.12
        port: 80
        weight: 0

  - name: mail
    health: none
    backends: [{host: 10.0.1.11, port: 25}, {host: mail.example.net, port: 25}]
  - name: spare
    slowStart: 5s
    backends:
    - {name: spare, host: 10.0.2.11, port: 25}
    detect: none
# Services
"""
SERVICES = """services:
- name: web
  vip: 203.0.113.10
  port: 80
  mode: nat
  pool: web
-
  name: mail
  vip: 203.0.113.10
  port: 25
  mode: nat
  pool: mail
- name: own
  vip: 203.0.113.11
  port: 53
  protocol: udp
  mode: dsr
  backends: [{host: 10.0.3.11, port: 53, weight: 0}]
  health: {type: udp, send: >-
      a question
      of two lines, expect: 'x'}
"""
PLAIN = GATEWAY + POOLS + SERVICES.replace(">-\n      a question\n      of two lines", "question")
TURNED = (
    GATEWAY
    + SERVICES.replace("send: >-", "send: '\n\n   -").replace("lines, exp", "lines', exp")
    + """pools:
- name: web
  backends:
  - {host: 10.0.0.11, port: 80}
  - host: 10.0.0.13
    port: 80
- {name: mail, backends: [{host: 10.0.1.11, port: 25}], health: {interval: 4s}}
"""
)
ANCHORS = (
    GATEWAY
    + POOLS.replace("health: {", "health: &check {").replace("health: none", "health: *check")
    + """  - name: other
    health: *check
    backends: &servers
      - {host: 10.0.4.11, port: 80}
      - {host: 10.0.4.12, port: 80}
"""
    + """services:
  - {name: a, vip: 203.0.113.10, port: 80, mode: nat, pool: web}
  - {name: b, vip: 203.0.113.10, port: 25, mode: nat, pool: mail}
  - {name: c, vip: 203.0.113.11, port: 80, mode: nat, backends: *servers, health: *check}
"""
)
COLONS = PLAIN.replace("{host: 10.0.0.11", "{host: 2001:db8::11").replace("mode: nat", "mode: ipip")
"""An item that libyaml refuses, and Python reads."""

TEXTS = {
    "plain": PLAIN,
    "turned": TURNED,
    "anchors": ANCHORS,
    "colons": COLONS,
    "reference": EXAMPLE,
}

Outcome = Config | tuple[ConfigProblem, ...]


def fresh(text: str) -> Outcome:
    try:
        return read_whole(text, "lb.yaml")
    except InvalidConfigError as refusal:
        return refusal.problems


def again(text: str, before: Reading | None) -> tuple[Outcome, Reading | None]:
    """Return what comes of a text, and what is in force then."""
    try:
        reading = read_again(text, "lb.yaml", before)
    except InvalidConfigError as refusal:
        return refusal.problems, before
    assert reading.digest == digest(reading.config)
    return reading.config, reading


def read(text: str, before: Reading | None = None) -> Reading:
    return read_again(text, "lb.yaml", before)


@pytest.mark.parametrize("name", TEXTS)
def test_files_as_people_write_them_are_read_in_pieces(name: str) -> None:
    """Block lists indented or not, comments, anchors, quotes over several lines."""
    reading = read(TEXTS[name])
    assert reading.config == fresh(TEXTS[name])
    assert len(reading.memory.services) == len(reading.config.services)


fragments = st.sampled_from(
    [
        *"\n :-[]{},#&*!|>'\"%@`\\\t?~<=05",
        *("  ", "- ", "\n  - ", "\n- ", ": ", "\n  ", "---\n", "...", "<<: ", "!!str ", "# "),
        *("gateway:\n", "services:\n", "pools:\n", "\nservices:\n", "name: web", "&a ", "*a"),
        *("10.0.0.11", "null", "weight: 0", "\r\n", "\x85", "\u2028", "\ufeff", "? ", "&check "),
    ]
)


@st.composite
def edited(draw: st.DrawFn, text: str) -> str:
    """Return a text after one edit: characters, or whole lines."""
    if draw(st.booleans()):
        start = draw(st.integers(0, len(text)))
        end = start + draw(st.sampled_from([0, 0, 1, 2, 30]))
        return text[:start] + "".join(draw(st.lists(fragments, max_size=3))) + text[end:]
    lines = text.splitlines(keepends=True)
    start = draw(st.integers(0, len(lines)))
    end = start + draw(st.integers(0, 8))
    piece, left = lines[start:end], lines[:start] + lines[end:]
    indent = draw(st.sampled_from(["", "", " ", "  "]))
    cut = draw(st.sampled_from([0, 0, 2]))
    moved = [indent + line[cut:] for line in piece] * draw(st.integers(0, 2))
    place = draw(st.sampled_from([start, draw(st.integers(0, len(left)))]))
    return "".join((*left[:place], *moved, *left[place:]))


@settings(max_examples=100, deadline=None)
@given(data=st.data(), text=st.sampled_from(list(TEXTS.values())))
def test_an_edited_file_is_read_as_if_for_the_first_time(data: st.DataObject, text: str) -> None:
    """Configuration, warnings, problems and their places, whatever was remembered before."""
    _, held = again(text, None)
    for _ in range(data.draw(st.integers(1, 4))):
        text = data.draw(edited(text))
        outcome, held = again(text, held)
        assert outcome == fresh(text)


def test_what_has_not_changed_is_the_same_object() -> None:
    """One backend's weight: its pool is another, and who uses that; the rest is what it was."""
    before = read(PLAIN)
    after = read(PLAIN.replace("port: 25}, {", "port: 25, weight: 7}, {"), before)
    same = [x is y for x, y in zip(before.config.services, after.config.services, strict=True)]
    assert same == [True, False, True]
    assert after.digest != before.digest


def test_what_has_moved_is_the_same_object() -> None:
    """An item that goes away changes the places of all others, and nothing else."""
    first = SERVICES[SERVICES.index("- name: web") : SERVICES.index("-\n")]
    before, text = read(PLAIN), PLAIN.replace(first, "")
    after = read(text, before)
    assert [*map(id, after.config.services)] == [*map(id, before.config.services[1:])]
    assert after.config == read_whole(text, "lb.yaml")
    assert set(after.config.warnings) - set(before.config.warnings)


def test_an_anchor_changes_whoever_refers_to_it() -> None:
    """What an item means can stand in another one."""
    before = read(ANCHORS)
    after = read(ANCHORS.replace("&check {", "&check {interval: 7s, "), before)
    assert [service.pool.health.interval_s for service in after.config.services] == [7.0] * 3


def test_a_name_that_stands_for_another_pool_is_followed() -> None:
    """The text of a service says nothing about its pool but the name."""
    renamed = PLAIN.replace("name: mail\n    health", "name: other\n    health")
    text = renamed.replace("name: spare\n    slow", "name: mail\n    slow")
    after = read(text, read(PLAIN))
    assert after.config == read_whole(text, "lb.yaml")
    assert [backend.name for backend in after.config.services[1].pool.backends] == ["spare"]


def test_nothing_is_remembered_but_the_last_text() -> None:
    """However often it changes."""
    reading = read(PLAIN)
    for weight in range(1, 20):
        reading = read(PLAIN.replace("weight: 0", f"weight: {weight}"), reading)
    assert (len(reading.memory.pools), len(reading.memory.services)) == (3, 3)


def test_a_refused_file_is_refused_as_a_whole() -> None:
    """Places count from the file's beginning."""
    wrong = PLAIN.replace("weight: 0}", "weight: -1}").replace("host: 10.0.0.12", "host: 10.0.0")
    with pytest.raises(InvalidConfigError) as refusal:
        read(wrong, read(PLAIN))
    lines = [problem.line for problem in refusal.value.problems]
    assert lines == [wrong[: wrong.index(x)].count("\n") + 1 for x in ("10.0.0\n", "weight: -1")]
