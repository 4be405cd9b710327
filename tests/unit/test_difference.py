"""What differs between two files, in the words of the file."""

from __future__ import annotations

import json
from ipaddress import ip_address
from typing import Any

import pytest

from lb_xdp.config import parse_config
from lb_xdp.config.difference import gateway_differences, service_differences
from lb_xdp.core.model import Config
from lb_xdp.core.names import Names, Question, resolved
from lb_xdp.core.preview import ServiceDifference, Setting, WeightChange
from tests.support.writings import config, document


def difference(before: Config, after: Config) -> ServiceDifference:
    (found,) = service_differences(before, after).values()
    return found


def test_equal_services_are_not_told() -> None:
    """Only what differs is there; services that come or go are for others to tell."""
    assert service_differences(config(1, 2), config(1, 2)) == {}
    assert service_differences(config(1, 2), config(1, 2, vip="203.0.113.11")) == {}


def test_backends_and_weights_by_name() -> None:
    """What comes, what goes, and whose weight is another."""
    found = difference(config(100, 100, -1), config(-1, 50, 100))
    assert (found.added, found.removed) == (("web3",), ("web1",))
    assert found.weights == (WeightChange("web2", 100, 50),)
    assert found.settings == ()


@pytest.mark.parametrize(
    ("changed", "settings"),
    [
        ({"algorithm": "random"}, [Setting("algorithm", "maglev", "random")]),
        ({"drain_timeout": "1min"}, [Setting("drain_timeout", "5min", "1min")]),
        ({"session": {"flows": "none"}}, [Setting("session.flows", "auto", "none")]),
        ({"name": "www"}, [Setting("name", "web", "www")]),
    ],
)
def test_settings_by_their_path(changed: dict[str, Any], settings: list[Setting]) -> None:
    """A key is told with both values, in the file's spelling, wherever it stands."""
    assert list(difference(config(1, 1), config(1, 1, **changed)).settings) == settings


def test_a_check_that_comes_is_told_whole() -> None:
    """Where one side is no mapping, both values are told as they could stand in the file."""
    found = difference(config(1), config(1, health={"type": "tcp"})).settings
    (health,) = found
    assert (health.key, health.before) == ("health", "none")
    assert health.after.startswith("{type: tcp, interval: ")


def test_settings_of_the_gateway() -> None:
    """Nested keys have dots; lists are told as a whole."""
    after = config(1, gateway={"interfaces": ["eth0", "eth1"], "flow_table": {"settle": "1min"}})
    assert gateway_differences(config(1), after) == (
        Setting("gateway.interfaces", "[eth0]", "[eth0, eth1]"),
        Setting("gateway.flow_table.settle", "15min", "1min"),
    )


def named(host: str, *addresses: str) -> Config:
    """Return a configuration whose second backend is asked of DNS."""
    values = document(100, 100)
    values["pools"][0]["backends"][1]["host"] = host
    answers = Names()
    asked = parse_config(json.dumps(values), "lb.yaml")
    how = asked.gateway.dns
    found = [ip_address(address) for address in addresses]
    answers, _ = answers.with_answer(Question(host, 4), found, how)
    return resolved(asked, answers)


def test_backends_by_name_are_their_addresses() -> None:
    """Of a name each address is a backend; another name is a setting of the service."""
    one, two = named("a.example", "10.0.1.1"), named("a.example", "10.0.1.1", "10.0.1.2")
    assert difference(one, two).added == ("web2@10.0.1.2",)
    other = difference(one, named("b.example", "10.0.1.1"))
    assert (other.added, other.removed) == ((), ())
    assert Setting("hosts", "[a.example]", "[b.example]") in other.settings
