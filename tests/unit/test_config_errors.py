"""Where mistakes are found in a file, and that all of them are."""

from __future__ import annotations

from pathlib import Path

import pytest

from lb_xdp.config import load_config, parse_config
from lb_xdp.config.build import MAX_NODES
from lb_xdp.config.reference import EXAMPLE
from lb_xdp.errors import ConfigProblem, InvalidConfigError

FIVE_MISTAKES = """\
gateway:
  interfaces: [eth0]
  colour: red
pools:
  - name: web
    backends:
      - {host: 10.0.0.11, port: 80}
      - {host: 10.0.0.12, port: 8080, weight: -1}
    health: {timout: 1s}
services:
  - {name: a, vip: 203.0.113.10, port: 80, mode: dsr, pool: web}
  - name: b
    vip: 203.0.113.10
    port: 80
    mode: nat
    pool: web
"""


def problems_of(text: str) -> list[str]:
    with pytest.raises(InvalidConfigError) as refusal:
        parse_config(text, "lb.yaml")
    assert all(isinstance(problem, ConfigProblem) for problem in refusal.value.problems)
    return str(refusal.value).splitlines()


def only_problem(text: str) -> str:
    (problem,) = problems_of(text)
    return problem.removeprefix("lb.yaml:")


def test_five_mistakes_make_five_lines_sorted_by_place() -> None:
    """A file with five different mistakes is answered by exactly five lines, each at its place."""
    assert problems_of(FIVE_MISTAKES) == [
        (
            "lb.yaml:3:3: gateway.colour: unknown key; "
            "allowed: name, interfaces, xdp_mode, api, metrics, snat_addresses, tunnel_sources, "
            "gue_port, flow_table, dns"
        ),
        (
            "lb.yaml:8:33: pools[0].backends[1].port: 8080 is not 80, the port of the service on "
            "line 11: dsr rewrites no ports, the server answers the client itself; use port 80 "
            "here, or `mode: nat` there"
        ),
        "lb.yaml:8:47: pools[0].backends[1].weight: -1 is not allowed; an integer from 0 to 65535",
        "lb.yaml:9:14: pools[0].health.timout: unknown key; did you mean `timeout`?",
        (
            "lb.yaml:13:10: services[1].vip: 203.0.113.10:80/tcp is taken by the service on "
            "line 11; one service for each"
        ),
    ]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("    vip: 203.0.113.10\n", "    vpi: 203.0.113.10\n", "services[0].vpi: unknown key; did"),
        ("pools:\n", "poolz:\n", "poolz: unknown key; did you mean `pools`?"),
        (
            "    pool: web\n",
            "    poll: web\n",
            "services[0].poll: unknown key; did you mean `pool`",
        ),
        (
            "    mode: nat ",
            "    mode: natt ",
            '"natt" is not allowed; one of dsr, ipip, gue, nat, fullnat; did you mean `nat`',
        ),
        ("protocol: tcp", "protocol: TCP", "did you mean `tcp`?"),
        ("    pool: web\n", "    pool: wed\n", 'there is no pool "wed"; did you mean `web`?'),
    ],
)
def test_one_typo_makes_one_message(old: str, new: str, expected: str) -> None:
    """A misspelled key or word is told once, with what was probably meant."""
    assert expected in only_problem(EXAMPLE.replace(old, new, 1))


def test_what_stands_below_a_misspelled_key_is_checked_too() -> None:
    """A typo in a section's name does not hide the mistakes in the section."""
    found = problems_of(EXAMPLE.replace("services:", "servces:").replace("port: 80\n", "port: 0\n"))
    assert [line.split(": ")[1] for line in found] == ["servces", "servces[0].port"]


def test_a_missing_key_points_to_the_mapping_that_lacks_it() -> None:
    """For a missing key the place is where its mapping starts."""
    broken = EXAMPLE.replace("{host: 10.0.0.12, port: 8080, weight: 200}", "{host: 10.0.0.12}")
    assert only_problem(broken) == (
        "12:9: pools[0].backends[1]: the key `port` is missing: the server's port"
    )


def test_a_camel_case_key_is_named_as_the_file_spells_it() -> None:
    """maxConnections means max_connections, and messages keep the file's spelling."""
    broken = EXAMPLE.replace("weight: 100}", "maxConnections: 0}")
    assert only_problem(broken).startswith("11:67: pools[0].backends[0].maxConnections: 0 is not")


def test_both_spellings_of_one_key_are_refused() -> None:
    """Nobody can tell which of xdp_mode and xdpMode should count."""
    broken = EXAMPLE.replace("xdp_mode: auto", "xdp_mode: auto\n  xdpMode: native")
    assert only_problem(broken) == (
        "5:3: gateway.xdpMode: this key is given twice; it stands as `xdp_mode` on line 4"
    )


def test_a_key_given_twice_is_refused_at_its_second_place() -> None:
    """YAML would take the last one in silence."""
    broken = EXAMPLE.replace("    mode: nat ", "    mode: dsr\n    mode: nat ")
    assert "services[0].mode: this key is given twice; it stands on line 28" in "".join(
        problems_of(broken)
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "1:1: the file is empty; it needs `gateway:` and `services:`"),
        ("# nothing\n", "1:1: the file is empty; it needs `gateway:` and `services:`"),
        ("- a\n", "1:1: a list is not allowed; the file is a mapping with `gateway:` and"),
        ("hello", '1:1: "hello" is not allowed; the file is a mapping'),
        ("gateway:\n\tname: x\n", "2:1: a tab in the indentation; use spaces"),
        ("gateway: {name: x\n", "1:10: this mapping lacks a `,` between two keys, or its closing"),
        ("gateway:\n  interfaces: [a, b\n", "2:15: this list lacks a `,` between two values, or"),
        ("gateway: 'x\n", "1:10: this quote is never closed"),
        ("a: b: c\n", "1:5: `:` cannot stand here; check the indentation"),
        ("- a\nb: c\n", "2:1: this line does not belong to what stands above it"),
        ("a: @x\n", "1:4: @ cannot start a value; put the text in quotes"),
        ("a: *b\n", "1:4: alias 'b' is used, but no anchor of that name stands above"),
        ("a: 1\n---\nb: 2\n", "2:1: a second YAML document starts here"),
        ("a: 1\nb: \x07\n", '2:4: the character "\\u0007" cannot stand here'),
        ('a: "\\q"\n', "a backslash in double quotes starts no known escape"),
        ("[" * 600, "1:1: lists and mappings are nested too deeply"),
        ("&a [*a]", "1:1: lists and mappings are nested too deeply"),
    ],
)
def test_broken_yaml_is_told_in_plain_words(text: str, expected: str) -> None:
    """Syntax errors come as one line with the scanner's place and without its jargon."""
    assert expected in only_problem(text)


def test_aliases_that_multiply_are_stopped() -> None:
    """A short file whose aliases stand for billions of values is refused, not written out."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
    assert f"more than {MAX_NODES:,} values" in only_problem("\n".join(lines))


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("    mode: nat ", "    mode: !x nat ", 'the tag "!x" is not allowed; leave it out'),
        ("    mode: nat ", "    <<: {}\n    mode: nat ", "merge keys (`<<`) are not allowed"),
        ("    mode: nat ", "    ? [a]\n    : b\n    mode: nat ", "cannot be a key"),
    ],
)
def test_yaml_beyond_plain_data_is_refused(old: str, new: str, expected: str) -> None:
    """Tags, merge keys and keys that are no text get a message of their own."""
    assert expected in only_problem(EXAMPLE.replace(old, new, 1))


def test_an_alias_stands_for_a_whole_value() -> None:
    """Anchors and aliases save repetition."""
    text = EXAMPLE.replace("    health: none", "    health: &h none").replace(
        "    pool: web\n", "    backends: [{host: 10.0.0.9, port: 1}]\n    health: none\n"
    )
    config = parse_config(text, "lb.yaml")
    assert config.services[0].pool.health == config.services[1].pool.health


def test_a_file_that_cannot_be_read_is_a_problem_of_the_file(tmp_path: Path) -> None:
    """A missing file is refused like a wrong one, so that a reload has one error to handle."""
    with pytest.raises(InvalidConfigError) as refusal:
        load_config(tmp_path / "absent.yaml")
    place = f"{tmp_path}/absent.yaml:1:1: "
    assert str(refusal.value) == f"{place}the file cannot be read: No such file or directory"


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
def test_a_file_that_is_not_utf8_is_refused_at_the_byte(tmp_path: Path, start: bytes) -> None:
    """Latin-1 text is told with its line and column, counted in characters."""
    path = tmp_path / "lb.yaml"
    path.write_bytes(start + "a: 1\nbü: ".encode() + b"\xe9t\xe9\n")
    with pytest.raises(InvalidConfigError) as refusal:
        load_config(path)
    assert str(refusal.value) == f"{path}:2:5: byte 0xe9 is not UTF-8; save the file as UTF-8"


def test_a_byte_order_mark_is_ignored(tmp_path: Path) -> None:
    """Files of Windows editors load like any other."""
    path = tmp_path / "lb.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + EXAMPLE.encode())
    assert load_config(str(path)).gateway.name == "gw1"


def test_a_file_without_end_is_refused() -> None:
    """A wrong path such as /dev/zero does not fill the memory."""
    with pytest.raises(InvalidConfigError, match="more than 4,194,304 bytes"):
        load_config("/dev/zero")
