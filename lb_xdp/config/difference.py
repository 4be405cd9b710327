"""What differs between two configurations, in the words of the file.

It compares the effective texts' values key by key, so a new key of the file is seen without a line
here. Services and backends are told apart by what they are on the wire, not by their names: another
name is a changed setting. Backends by name are those that their names stand for; configurations are
resolved ones. It refuses to judge what a difference costs: ``core.preview`` does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from lb_xdp.config.effective import gateway_document, service_document
from lb_xdp.core.model import BackendKey, Config, Service, ServiceKey
from lb_xdp.core.preview import ServiceDifference, Setting, WeightChange

_NOTHING = "none"


def gateway_differences(before: Config, after: Config) -> tuple[Setting, ...]:
    """Return the settings of ``gateway`` that differ."""
    pair = gateway_document(before.gateway), gateway_document(after.gateway)
    return tuple(_settings("gateway", *pair))


def service_differences(before: Config, after: Config) -> dict[ServiceKey, ServiceDifference]:
    """Return what differs of each service that is there before and after; nothing of equal ones."""
    former = {service.key: service for service in before.services}
    pairs = ((former.get(service.key), service) for service in after.services)
    return {
        new.key: _service(old, new)
        for old, new in pairs
        if old is not None and old != new  # documents are slow: 1,000 equal services make none
    }


def _service(before: Service, after: Service) -> ServiceDifference:
    old, new = _backends(before), _backends(after)
    return ServiceDifference(
        added=tuple(str(new[key]["name"]) for key in new if key not in old),
        removed=tuple(str(old[key]["name"]) for key in old if key not in new),
        weights=tuple(
            WeightChange(str(new[key]["name"]), old[key]["weight"], new[key]["weight"])
            for key in new
            if key in old and old[key]["weight"] != new[key]["weight"]
        ),
        settings=(
            *_settings("", _without_backends(before), _without_backends(after)),
            *(
                setting
                for key in new
                if key in old
                for setting in _settings(
                    f"backends.{new[key]['name']}", _unweighted(old[key]), _unweighted(new[key])
                )
            ),
        ),
    )


def _without_backends(service: Service) -> dict[str, Any]:
    hosts = [named.host for named in service.pool.named]
    document = {**_document(service), **({"hosts": hosts} if hosts else {})}
    return {key: value for key, value in document.items() if key != "backends"}


def _backends(service: Service) -> dict[BackendKey, dict[str, Any]]:
    documents = _document(service)["backends"]
    return {b.key: d for b, d in zip(service.pool.backends, documents, strict=True)}


def _document(service: Service) -> dict[str, Any]:
    """Return all that is said of a service, with each backend for itself."""
    return service_document(replace(service, pool=replace(service.pool, named=())))


def _unweighted(backend: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in backend.items() if key != "weight"}


def _settings(path: str, before: object, after: object) -> Iterator[Setting]:
    """Yield the leaves that differ; what is a mapping on both sides is gone into."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in {**before, **after}:
            inner = f"{path}.{key}" if path else key
            yield from _settings(inner, before.get(key), after.get(key))
    elif before != after:
        yield Setting(path, _spelled(before), _spelled(after))


def _spelled(value: object) -> str:
    """Return a value as it could stand in the file."""
    if value is None:
        return _NOTHING
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_spelled(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_spelled, value)) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)
