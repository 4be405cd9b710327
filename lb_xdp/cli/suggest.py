"""What a shell may complete: names of services, backends and pools, asked of the daemon.

A shell waits for it at a key press, so it is quick or silent: where no daemon answers at once, or
several run and none is named, nothing is suggested.
"""

from __future__ import annotations

from collections.abc import Iterable

import click
from click.shell_completion import CompletionItem

from lb_xdp.api.client import Client
from lb_xdp.cli.connect import find
from lb_xdp.cli.target import Target, target_of
from lb_xdp.errors import LbError


def services(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the name of a service."""
    return _fitting(_names(ctx), incomplete)


def backends(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete ``SERVICE/BACKEND``: the service first, as shells do with folders."""
    names = _names(ctx)
    service, slash, _ = incomplete.partition("/")
    if slash or service in names or len(names) == 1:
        found = (f"{name}/{each}" for name in names for each in names[name])
        return _fitting(found, incomplete)
    return _fitting((f"{name}/" for name in names), incomplete)


def backend_names(
    ctx: click.Context, _param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Complete the name of a backend, of the service that was given before it if there is one."""
    names = _names(ctx)
    service = ctx.params.get("service")
    chosen = [names.get(service, [])] if service else names.values()
    return _fitting(sorted({each for members in chosen for each in members}), incomplete)


def pools(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the name of a pool."""
    client = _client(ctx)
    try:
        found = client.pool_names() if client else []
    except LbError:
        found = []
    return _fitting(found, incomplete)


def _fitting(names: Iterable[str], incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def _names(ctx: click.Context) -> dict[str, list[str]]:
    """Return the backends' names by service, nothing where nobody answers."""
    client = _client(ctx)
    try:
        return client.names() if client else {}
    except LbError:
        return {}


def _client(ctx: click.Context) -> Client | None:
    """Return a client of the daemon that the options before the verb mean, if there is one."""
    try:
        return find(target_of(ctx.find_object(Target) or Target(), **ctx.find_root().params))
    except (LbError, click.UsageError):
        return None
