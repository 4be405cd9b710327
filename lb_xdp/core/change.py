"""From one configuration to the next: what stays, and what cannot change without a restart."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from lb_xdp.core.model import Config, Gateway, Service


def _metrics(gateway: Gateway) -> str:
    listen = gateway.metrics_listen
    return f"{listen.host}:{listen.port}" if listen else "none"


def _listener(gateway: Gateway) -> str:
    remote = gateway.api_listener
    if remote is None:
        return "none"
    host, port = remote.listen
    return f"{host}:{port} with {remote.certificate}, {remote.key}, {remote.tokens}"


_NEED_RESTART: Mapping[str, Callable[[Gateway], str]] = {
    "gateway.name": lambda gateway: gateway.name,
    "gateway.xdp_mode": lambda gateway: gateway.xdp_mode,
    "gateway.api.socket": lambda gateway: gateway.api_socket,
    "gateway.api.group": lambda gateway: gateway.api_group or "none",
    "gateway.api.listen": _listener,
    "gateway.metrics.listen": _metrics,
    "gateway.flow_table.entries": lambda gateway: str(gateway.flow_table.entries),
}

_COSTS = {
    "gateway.flow_table.entries": (
        "restart the daemon with `run --replace`",
        "all flow records are lost with the table, ",
    )
}
"""How to restart, and what that loses, where a plain restart is not all of it."""


def needs_restart(before: Gateway, after: Gateway) -> str | None:
    """Return a sentence about the first setting that takes a restart, None if none changes."""
    for key, setting in _NEED_RESTART.items():
        if setting(before) != setting(after):
            how, lost = _COSTS.get(key, ("restart the daemon", ""))
            return (
                f"{key} changes from {setting(before)} to {setting(after)}: {how} for that; "
                f"{lost}forwarding goes on meanwhile"
            )
    return None


def shared(before: Config, after: Config) -> Config:
    """Return ``after`` with the very services of ``before`` where they are equal.

    What has been found out about a service is remembered by the object: of thousands, a reload then
    costs the few that change.
    """
    held = {service.key: service for service in before.services}
    services = tuple(_former(held.get(new.key), new) for new in after.services)
    return replace(after, services=services)


def _former(former: Service | None, new: Service) -> Service:
    return former if former is not None and (former is new or former == new) else new
