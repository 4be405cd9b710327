"""The keys of health checks: what each kind takes, refuses and needs, on this host as well."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from lb_xdp.config import parse_config
from lb_xdp.config.effective import effective
from lb_xdp.config.health import KINDS_OF
from lb_xdp.config.schema import Health
from lb_xdp.core.check import DnsCheck, HttpCheck, Payload, Tls
from lb_xdp.core.model import CheckKind, Config, HealthCheck, Initial
from lb_xdp.errors import InvalidConfigError
from tests.support.certificates import Authority

VALUES: dict[str, Any] = {
    "port": 9,
    "via": "direct",
    "send": "a",
    "expect": "b",
    "method": "GET",
    "path": "/x",
    "host_header": "www.example.net",
    "headers": {"X-Token": "secret"},
    "expected_status": 200,
    "expected_body": "ok",
    "reuse": True,
    "tls": True,
    "server_name": "www.example.net",
    "ca_file": "/etc/ssl/ca.pem",
    "insecure": False,
    "certificate": "/etc/ssl/probe.pem",
    "private_key": "/etc/ssl/probe.key",
    "grpc_service": "a.B",
    "query_name": "www.example.net",
    "query_type": "A",
    "expected_answer": "192.0.2.1",
    "command": [sys.executable, "-V"],
}
NEEDED: dict[CheckKind, dict[str, Any]] = {
    CheckKind.UDP: {"send": "a"},
    CheckKind.DNS: {"query_name": "www.example.net"},
    CheckKind.EXEC: {"command": [sys.executable]},
}
KINDS = [kind for kind in CheckKind if kind is not CheckKind.NONE]


def load(health: object) -> Config:
    """Load a small configuration with this health check."""
    service = {"name": "web", "vip": "203.0.113.10", "port": 80, "mode": "nat",
               "backends": [{"host": "10.0.0.11", "port": 8080}], "health": health}  # fmt: skip
    text = StringIO()
    YAML().dump({"gateway": {"interfaces": ["eth0"]}, "services": [service]}, text)
    return parse_config(text.getvalue(), "lb.yaml")


def check(kind: str, **keys: object) -> HealthCheck:
    """Return the check of a kind with these keys."""
    return load({"type": kind, **keys}).services[0].pool.health


def complaints(health: object) -> list[str]:
    """Return what is wrong with a check."""
    with pytest.raises(InvalidConfigError) as refusal:
        load(health)
    return [str(problem).partition("services[0].")[2] for problem in refusal.value.problems]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """A CA."""
    return Authority(tmp_path_factory.mktemp("ca"))


def test_every_key_is_of_all_kinds_or_in_the_table() -> None:
    """A new key of one kind cannot be forgotten: the others must say that it has no effect."""
    common = {"type", "interval", "fast_interval", "down_interval", "timeout", "threshold",
              "jitter", "initial", "host"}  # fmt: skip
    assert set(Health.model_fields) - common == set(KINDS_OF) == set(VALUES)


def cases() -> Iterator[tuple[CheckKind, str]]:
    """Yield every kind with every key that is not its own."""
    for kind in KINDS:
        yield from ((kind, key) for key, kinds in KINDS_OF.items() if kind not in kinds)


@pytest.mark.parametrize(("kind", "key"), list(cases()), ids=str)
def test_a_key_of_another_kind_is_an_error(kind: CheckKind, key: str) -> None:
    """Each key that would do nothing is told, once, with the kinds that it belongs to."""
    (told,) = complaints({"type": str(kind), **NEEDED.get(kind, {}), key: VALUES[key]})
    assert told.startswith(f"health.{key}: has no effect with `type: {kind}`; leave it out, or ")
    assert key in ("port", "via") or all(f"`type: {other}`" in told for other in KINDS_OF[key])


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_accepted_with_no_more_than_it_needs(kind: CheckKind) -> None:
    """All else has defaults."""
    assert check(str(kind), **NEEDED.get(kind, {})).kind is kind


@pytest.mark.parametrize("kind", NEEDED)
def test_what_a_kind_cannot_do_without_is_asked_for(kind: CheckKind) -> None:
    """The message names the key and what it is for."""
    (told,) = complaints({"type": str(kind)})
    assert told.startswith(f"health: `type: {kind}` needs `{next(iter(NEEDED[kind]))}`: ")


def test_an_empty_command_is_none() -> None:
    """A list of nothing is nothing to run."""
    (told,) = complaints({"type": "exec", "command": []})
    assert told.startswith("health: `type: exec` needs `command`")


def test_the_model_has_what_the_file_says() -> None:
    """Every key arrives in the part of the check that its kind heeds."""
    found = check("tcp", send="PING\r\n", expect="hex:2b 504f4e47", fastInterval="100ms",
                  down_interval=10, initial="up")  # fmt: skip
    assert found.payload == Payload(b"PING\r\n", b"+PONG")
    assert (found.fast_interval_s, found.down_interval_s) == (0.1, 10.0)
    assert found.initial is Initial.UP
    keys = {key: VALUES[key] for key, kinds in KINDS_OF.items() if kinds == KINDS_OF["path"]}
    found = check("http", **keys)
    assert found.http.headers == (("X-Token", "secret"),)
    assert (found.http.method, found.http.expected_body, found.http.reuse) == ("GET", "ok", True)
    assert found.tls is None
    assert check("https", server_name="a.example").tls == Tls("a.example")
    assert check("https", insecure=True).tls == Tls(insecure=True)
    assert check("grpc").tls is None
    assert check("grpc", tls=True, grpc_service="a.B").tls == Tls()
    assert check("dns", query_name="w", query_type="AAAA").dns == DnsCheck("w", "AAAA")
    assert check("exec", command=[sys.executable, "a b"]).command == (sys.executable, "a b")


def test_header_names_keep_their_spelling() -> None:
    """What looks like camelCase is no key of ours."""
    assert check("http", headers={"eTag": "x", "x_y": "z"}).http.headers == (
        ("eTag", "x"),
        ("x_y", "z"),
    )


@pytest.mark.parametrize(
    ("health", "told"),
    [
        ({"type": "tcp", "send": "a"}, "health.send: without `expect` the answer would not"),
        ({"type": "tcp", "expect": ""}, "health.expect: "),
        ({"type": "tcp", "expect": 5}, "health.expect: 5 is not allowed; text, or octets"),
        ({"type": "tcp", "expect": "hex:0g"}, 'health.expect: "hex:0g" is not allowed; text, or'),
        ({"type": "udp", "send": "x" * 4097}, "health.send: "),
        ({"fast_interval": 3}, "health.fast_interval: 3s is longer than the interval (2s)"),
        ({"down_interval": 0}, "health.down_interval: 0 is not allowed; a duration from 10ms"),
        ({"initial": "maybe"}, 'health.initial: "maybe" is not allowed; one of up, down, unknown'),
        ({"type": "http", "method": "get"}, 'health.method: "get" is not allowed; a method in'),
        ({"type": "http", "expected_body": "("}, 'health.expected_body: "(" is not allowed; as a'),
        ({"type": "http", "headers": ["a"]}, "health.headers: a list is not allowed; at most 32"),
        ({"type": "http", "headers": {"Host": "a"}}, 'health.headers: "Host" is not allowed; use'),
        ({"type": "http", "headers": {"a b": "c"}}, 'health.headers: "a b" is not allowed; the'),
        ({"type": "http", "headers": {"a": 5}}, 'health.headers: the value of "a" is not'),
        ({"type": "http", "headers": {"a": "b\r\nc: d"}}, 'health.headers: the value of "a" is'),
        ({"type": "http", "headers": {"a": "b", "A": "c"}}, 'health.headers: "A" is given twice'),
        ({"type": "http", "reuse": "yes"}, 'health.reuse: "yes" is not allowed; true or false'),
        (
            {"type": "http", "method": "HEAD", "expected_body": "x"},
            "health.expected_body: the answer to HEAD has no body",
        ),
        ({"type": "https", "server_name": "a b"}, 'health.server_name: "a b" is not allowed'),
        ({"type": "https", "ca_file": "ca.pem"}, 'health.ca_file: "ca.pem" is not allowed; an abs'),
        (
            {"type": "grpc", "server_name": "a.example"},
            "health.server_name: has no effect without `tls: true`",
        ),
        ({"type": "dns", "query_name": "a..b"}, 'health.query_name: "a..b" is not allowed'),
        ({"type": "dns", "query_name": "a", "query_type": "ANY"}, "health.query_type: "),
        (
            {"type": "dns", "query_name": "a", "expected_answer": "2001:db8::1"},
            'health.expected_answer: "2001:db8::1" is no A record as zone files write it',
        ),
        ({"type": "exec", "command": "/bin/true"}, "health.command: "),
        ({"type": "exec", "command": ["true"]}, 'health.command: "true" is not allowed; the prog'),
        ({"type": "exec", "command": [sys.executable, 5]}, "health.command: arguments are text"),
    ],
)  # fmt: skip
def test_a_wrong_check_makes_one_message_in_plain_words(health: object, told: str) -> None:
    """Each mistake is told once, at its key."""
    (found,) = complaints(health)
    assert found.startswith(told)


def test_files_that_are_missing_are_told_each(tmp_path: Path) -> None:
    """All at once, with the system's reason."""
    gone = str(tmp_path / "gone")
    keys = ("ca_file", "certificate", "private_key")
    found = complaints({"type": "https", **dict.fromkeys(keys, gone)})
    assert [line.partition(":")[0] for line in found] == [f"health.{key}" for key in keys]
    assert all("cannot be read: no such file or directory" in line for line in found)


def test_files_of_other_contents_are_told(tmp_path: Path, authority: Authority) -> None:
    """A file without certificates, and a key that belongs to another certificate."""
    other = tmp_path / "other.pem"
    other.write_text("hello\n")
    (told,) = complaints({"type": "https", "ca_file": str(other)})
    assert told.endswith(" holds no certificate in PEM form")
    certificate, _ = authority.sign("one", "DNS:one.example")
    _, key = authority.sign("two", "DNS:two.example")
    keys = {"certificate": str(certificate), "private_key": str(key)}
    (told,) = complaints({"type": "grpc", "tls": True, **keys})
    assert told.startswith("health.certificate: ")
    assert "belonging together" in told


def test_good_files_are_accepted(authority: Authority) -> None:
    """A CA, a certificate and its key."""
    certificate, key = map(str, authority.sign("probe", "DNS:probe.example"))
    ca_file = str(authority.certificate)
    found = check("https", ca_file=ca_file, certificate=certificate, private_key=key)
    assert found.tls == Tls(None, ca_file, insecure=False, certificate=certificate, private_key=key)
    (told,) = complaints({"type": "https", "private_key": key})
    assert told.startswith("health.private_key: has no effect without `certificate`")
    (told,) = complaints({"type": "https", "ca_file": ca_file, "insecure": True})
    assert told.startswith("health.ca_file: has no effect with `insecure: true`")


def test_a_command_must_be_there_and_executable(tmp_path: Path) -> None:
    """Its place in the file is that of the program's name."""
    program = tmp_path / "probe"
    (told,) = complaints({"type": "exec", "command": [str(program)]})
    assert told.startswith("health.command[0]: there is no file ")
    program.write_text("#!/bin/sh\n")
    program.chmod(0o644)
    (told,) = complaints({"type": "exec", "command": [str(program)]})
    assert told.endswith("is not executable: chmod +x")


def test_grpc_without_its_library_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra is named in the message."""
    monkeypatch.setitem(sys.modules, "h2", None)
    (told,) = complaints({"type": "grpc"})
    assert told.startswith("health.type: `grpc` needs the library h2, which is not installed")
    assert "`lb-xdp[grpc]`" in told
    assert told.endswith("-m pip install h2`")


@pytest.mark.parametrize(
    "health",
    [
        {"type": "tcp", "send": "PING\r\n", "expect": "hex:00ff", "initial": "down"},
        {"type": "tcp", "expect": "hex:6865783a"},
        {"type": "udp", "send": "é", "fast_interval": "100ms", "down_interval": "1min"},
        {
            "type": "http",
            "headers": {"A": "b: c", "D": ""},
            "expected_body": "a|b",
            "method": "PUT",
        },
        {"type": "https", "insecure": True, "reuse": True, "server_name": "a.example"},
        {"type": "grpc"},
        {"type": "grpc", "tls": True, "grpc_service": "a.B"},
        {"type": "dns", "query_name": ".", "query_type": "NS"},
        {"type": "dns", "query_name": "a", "query_type": "TXT", "expected_answer": '"a b"'},
        {"type": "icmp", "host": "::1"},
        {"type": "exec", "command": [sys.executable, "-c", "print('$x')", ""]},
        {"type": "agent", "send": "web1\n", "port": 9},
    ],
    ids=lambda health: str(health["type"]),
)
def test_the_effective_configuration_is_the_same_again(health: dict[str, Any]) -> None:
    """Written out with every default, each kind reads back equal."""
    config = load(health)
    again = parse_config(effective(config), "lb.yaml")
    assert again.services == config.services


def test_kinds_without_a_port_do_for_any_port() -> None:
    """A service of all ports can be probed by icmp and exec, and by others with a port."""
    text = effective(load("none")).replace("port: 80\n", "port: any\n")
    text = text.replace("        port: 8080\n", "")
    for health in ("{type: icmp}", f"{{type: exec, command: [{sys.executable}]}}"):
        assert parse_config(text.replace("health: none", f"health: {health}"), "lb.yaml")
    with pytest.raises(InvalidConfigError, match="probes need a `port:`"):
        parse_config(text.replace("health: none", "health: {type: agent}"), "lb.yaml")


def test_defaults_are_a_get_of_the_root() -> None:
    """An http check with nothing said asks for / and takes what is no error."""
    assert check("http").http == HttpCheck()
