"""What DNS says, how much of it is believed, and the backends that come of it."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lb_xdp.address_book import AddressBook
from lb_xdp.config import effective, parse_config, rules
from lb_xdp.config.values import RefusedError
from lb_xdp.core.event import Event, EventKind
from lb_xdp.core.model import Address, Config, Resolving
from lb_xdp.core.names import (
    MAX_ADDRESSES,
    Change,
    Names,
    Question,
    questions,
    resolved,
    unanswered,
)

WEB = Question("web.example.net", 4)
HOW = Resolving(max_change=0.5, confirm=3)

FILE = """
gateway: {{interfaces: [eth0], snat_addresses: [10.0.0.5]}}
pools:
  - name: p
    health: none
    backends:
      - {{name: first, host: 10.0.0.1, port: 80, weight: 7}}
      - {{name: web, host: Web.Example.NET., port: 80, weight: 50, max_connections: 9}}
      - {{name: last, host: 10.0.0.9, port: 80}}
services:
  - {{name: s, vip: {vip}, port: 80, mode: {mode}, pool: p}}
"""


def config(mode: str = "nat", vip: str = "203.0.113.10") -> Config:
    return parse_config(FILE.format(mode=mode, vip=vip), "lb.yaml")


def some(*last: int) -> frozenset[Address]:
    return frozenset(ip_address(f"10.0.1.{n}") for n in last)


def told(names: Names, *answers: frozenset[Address], how: Resolving = HOW) -> tuple[Names, Any]:
    change = None
    for answer in answers:
        names, change = names.with_answer(WEB, answer, how)
    return names, change


def test_additions_and_small_losses_count_at_once() -> None:
    """More addresses, and up to the share that may vanish, need no second answer."""
    names, change = told(Names(), some(1, 2))
    assert (names.addresses(WEB), change) == (some(1, 2), Change.TAKEN)
    names, change = told(names, some(1, 2, 3, 4))
    assert (names.addresses(WEB), change) == (some(1, 2, 3, 4), Change.TAKEN)
    names, change = told(names, some(1, 2, 5))
    assert (names.addresses(WEB), change) == (some(1, 2, 5), Change.TAKEN)
    assert told(names, some(1, 2, 5))[1] is Change.NONE


def test_a_great_loss_counts_when_it_came_often_enough_in_a_row() -> None:
    """Until then all of the old ones go on, and what is new counts already."""
    names, _ = told(Names(), some(1, 2))
    names, change = told(names, some(3))
    assert (names.addresses(WEB), change) == (some(1, 2, 3), Change.HELD_BACK)
    names, change = told(names, some(3))
    assert change is Change.HELD_BACK
    names, change = told(names, some(3))
    assert (names.addresses(WEB), change) == (some(3), Change.TAKEN)


def test_another_answer_in_between_starts_the_count_anew() -> None:
    """Answers that flap never confirm each other."""
    names, _ = told(Names(), some(1, 2))
    names, change = told(names, some(3), some(3), some(4), some(3), some(3))
    assert (names.addresses(WEB), change) == (some(1, 2, 3), Change.HELD_BACK)
    names, change = told(names, some(1, 2))
    assert (names.addresses(WEB), change) == (some(1, 2), Change.TAKEN)


@given(
    answers=st.lists(st.frozensets(st.integers(1, 6), min_size=1), max_size=30),
    share=st.floats(0, 1),
    confirm=st.integers(1, 5),
)
def test_there_is_always_an_address_and_no_great_loss_at_once(
    answers: list[frozenset[int]], share: float, confirm: int
) -> None:
    """Whatever is answered, an answer's own addresses count, and losses keep to the share."""
    how = Resolving(max_change=share, confirm=confirm)
    names = Names()
    for number, answer in enumerate(answers):
        before = names.held[WEB].accepted if WEB in names.held else frozenset()
        names, change = names.with_answer(WEB, some(*answer), how)
        lost = before - names.addresses(WEB)
        assert some(*answer) <= names.addresses(WEB)
        if len(lost) > share * len(before):
            run = answers[max(number + 1 - confirm, 0) : number + 1]
            assert run == [answer] * confirm
        assert (change is Change.HELD_BACK) == (names.held[WEB].times > 0)


def test_each_address_is_a_backend_in_the_file_s_place() -> None:
    """Names and order follow the file; weight and limit are each address's own."""
    names, _ = told(Names(), some(2, 1))
    backends = resolved(config(), names).services[0].pool.backends
    assert [b.name for b in backends] == ["first", "web@10.0.1.1", "web@10.0.1.2", "last"]
    assert [(b.weight, b.max_connections) for b in backends[1:3]] == [(50, 9), (50, 9)]
    names, _ = told(Names(), some(2))
    assert [b.name for b in resolved(config(), names).services[0].pool.backends][1] == "web"
    assert len(resolved(config(), Names()).services[0].pool.backends) == 2


def test_addresses_that_cannot_be_a_backend_are_left_out() -> None:
    """VIPs and fullnat's sources would come back here; an address in the file is there already."""
    answer = map(ip_address, ("203.0.113.10", "10.0.0.5", "10.0.0.1", "10.0.1.1"))
    names, _ = Names().with_answer(WEB, frozenset(answer), HOW)
    backends = resolved(config(), names).services[0].pool.backends
    assert [str(b.address) for b in backends] == ["10.0.0.1", "10.0.1.1", "10.0.0.9"]


@pytest.mark.parametrize(("mode", "families"), [("nat", {4}), ("ipip", {4, 6})])
def test_the_vip_says_which_ip_version_is_asked(mode: str, families: set[int]) -> None:
    """Tunnels carry either; of a name that has both, the VIP's is taken."""
    asked = questions(config(mode))
    assert {question.family for question in asked} == families
    assert {question.host for question in asked} == {"web.example.net"}
    six = frozenset([ip_address("2001:db8::1")])
    names, _ = Names().with_answer(Question(WEB.host, 6), six, HOW)
    assert unanswered(config(mode), Names()) == ["web.example.net"]
    assert bool(unanswered(config(mode), names)) == (mode == "nat")
    if mode == "ipip":
        assert resolved(config(mode), names).services[0].pool.backends[1].address in six
        names, _ = told(names, some(1))
        assert resolved(config(mode), names).services[0].pool.backends[1].address in some(1)


def test_a_name_survives_being_written_out() -> None:
    """The effective configuration has the name in its place, resolved or not."""
    first = config()
    text = effective(first)
    assert "host: web.example.net" in text
    again = parse_config(text, "lb.yaml")
    assert again.services == first.services
    assert again.gateway == first.gateway


def test_a_name_is_in_a_pool_once() -> None:
    """The same host and port twice is refused as the same address is."""
    text = FILE.format(mode="nat", vip="203.0.113.10").replace(
        "name: last, host: 10.0.0.9", "name: last, host: web.example.net"
    )
    with pytest.raises(Exception, match=r"web\.example\.net:80 is in this pool on line 8 already"):
        parse_config(text, "lb.yaml")


def test_a_name_does_not_go_with_any_port_in_nat() -> None:
    """Which service a reply belongs to must be known beforehand."""
    text = """
gateway: {interfaces: [eth0]}
services:
  - name: s
    vip: 203.0.113.10
    port: any
    mode: nat
    health: none
    backends: [{host: web.example.net}]
"""
    with pytest.raises(Exception, match="a host name does not go with `mode: nat` and `port: any`"):
        parse_config(text, "lb.yaml")
    plain = parse_config(text.replace("mode: nat", "mode: dsr"), "lb.yaml")
    assert plain.services[0].pool.named[0].template.name == "web.example.net"


class Book:
    """An address book, and the events that it told."""

    def __init__(self, folder: Path) -> None:
        self.events: list[Event] = []
        self.book = AddressBook(folder, self.events.append)

    def kinds(self) -> list[EventKind]:
        return [event.kind for event in self.events]


def test_events_tell_what_changed_and_each_trouble_once(tmp_path: Path) -> None:
    """A failure that repeats is told once; an answer ends it."""
    made = Book(tmp_path)
    assert made.book.take(WEB, some(1), "10.0.0.53", HOW)
    (event,) = made.events
    assert (event.kind, event.backend) == (EventKind.RESOLVED, "web.example.net")
    assert (event.before, event.after) == ("", "10.0.1.1")
    for _ in range(3):
        made.book.fail(WEB, "no answer")
    assert made.kinds() == [EventKind.RESOLVED, EventKind.RESOLVE_FAILED]
    (said,) = made.book.notices(config())
    assert said == "web.example.net (IPv4): no answer; the last good answer counts (1)"
    assert not made.book.take(WEB, some(1), "10.0.0.53", HOW)
    assert made.book.notices(config()) == ()


def test_answers_are_kept_for_the_next_life_and_forgotten_with_the_name(tmp_path: Path) -> None:
    """What was accepted is on the disk; what is doubted is not."""
    first = Book(tmp_path).book
    first.take(WEB, some(1, 2), "10.0.0.53", HOW)
    first.take(WEB, some(3), "10.0.0.53", HOW)
    second = Book(tmp_path).book
    backends = second.resolved(config()).services[0].pool.backends
    assert [str(b.address) for b in backends[1:3]] == ["10.0.1.1", "10.0.1.2"]
    other = FILE.format(mode="nat", vip="203.0.113.10").replace("Web.Example.NET.", "b.net")
    second.only(questions(parse_config(other, "lb.yaml")))
    assert Book(tmp_path).book.unanswered(config()) == ["web.example.net"]


WRONG_FAMILY = '{"version": 1, "names": [{"host": "a", "family": 6, "addresses": ["10.0.0.1"]}]}'


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"version": 2, "names": []}', WRONG_FAMILY])
def test_a_file_that_makes_no_sense_is_no_answer(tmp_path: Path, text: str) -> None:
    """It is a cache: the daemon starts without it."""
    (tmp_path / "names.json").write_text(text)
    assert Book(tmp_path).book.unanswered(config()) == ["web.example.net"]


def test_too_many_and_unfit_addresses_are_cut(tmp_path: Path) -> None:
    """The lowest of too many count; an answer of unfit ones alone changes nothing."""
    made = Book(tmp_path)
    many = frozenset(ip_address(f"10.0.1.{n}") for n in range(1, 100))
    made.book.take(WEB, many, "10.0.0.53", HOW)
    assert len(made.book.resolved(config()).services[0].pool.backends) == MAX_ADDRESSES + 2
    assert "of which 64 count" in made.events[0].cause
    assert not made.book.take(WEB, [ip_address("127.0.0.1")], "10.0.0.53", HOW)
    assert "can be no backend's address" in made.events[-1].cause


UNFIT = [
    *("127.0.0.1", "0.0.0.0", "0.0.0.5", "224.0.0.1", "239.1.2.3", "255.255.255.255"),
    *("::", "::1", "::5", "::ffff:10.0.0.1", "ff02::1", "fe80::1"),
]


@pytest.mark.parametrize("host", [*UNFIT, "10.0.0.1", "169.254.1.1", "240.0.0.1", "2001:db8::1"])
def test_dns_says_what_the_file_may_say(host: str, tmp_path: Path) -> None:
    """One rule says which addresses a backend can have, wherever they are from."""
    address = ip_address(host)
    taken = Book(tmp_path).book.take(Question("b.net", address.version), [address], "dns", HOW)
    try:
        rules.BACKEND_HOST.convert(host)
    except RefusedError:
        in_file = False
    else:
        in_file = True
    assert (taken, in_file) == (host not in UNFIT,) * 2


def test_what_is_only_tried_leaves_no_trace(tmp_path: Path) -> None:
    """A plan asks names that nobody else does: no event tells of them, and they are forgotten."""
    kept = Book(tmp_path)
    kept.book.untold = frozenset({WEB})
    assert kept.book.take(WEB, some(1, 2), "10.0.0.53", HOW)
    kept.book.fail(WEB, "no answer")
    assert kept.events == []
    kept.book.only(())
    assert Book(tmp_path).book.unanswered(config()) == ["web.example.net"]
