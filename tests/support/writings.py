"""Configuration files of one service, as text, for tests of what differs between two of them."""

from __future__ import annotations

import json
from typing import Any

from lb_xdp.config import parse_config
from lb_xdp.core.model import Config

VIP = "203.0.113.10"


def document(
    *weights: int, gateway: dict[str, Any] | None = None, **service: Any
) -> dict[str, Any]:
    """Return a file's values: one service ``web`` of backends web1, web2 ... of these weights.

    A weight below 0 leaves that backend out. Keys of ``health`` and of the pool go to the pool.
    """
    backends = [
        {"name": f"web{n}", "host": f"10.0.0.{10 + n}", "port": 80, "weight": weight}
        for n, weight in enumerate(weights, 1)
        if weight >= 0
    ]
    pool = {key: service.pop(key) for key in ("health", "drain_timeout") if key in service}
    web = {"name": "web", "vip": VIP, "port": 80, "protocol": "tcp", "mode": "nat", "pool": "web"}
    return {
        "gateway": {"name": "gw1", "interfaces": ["eth0"], **(gateway or {})},
        "pools": [{"name": "web", "backends": backends, "health": "none", **pool}],
        "services": [web | service],
    }


def text(*weights: int, **changes: Any) -> str:
    """Return the file of ``document``: JSON is YAML."""
    return json.dumps(document(*weights, **changes))


def config(*weights: int, **changes: Any) -> Config:
    """Return the configuration of ``document``."""
    return parse_config(text(*weights, **changes), "lb.yaml")
