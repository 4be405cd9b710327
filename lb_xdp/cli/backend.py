"""``lb-xdp backend``: what is asked of a backend at run time, beside the file."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from lb_xdp.cli import suggest
from lb_xdp.cli.arguments import BackendPath, backend_path, duration_s
from lb_xdp.cli.backend_table import render
from lb_xdp.cli.connect import connect

if TYPE_CHECKING:
    from lb_xdp.cli.target import Target
    from lb_xdp.core.snapshot import ServiceStatus, Snapshot

PIPED_COLUMNS = 120

_backend = click.argument(
    "path", metavar="SERVICE/BACKEND", type=backend_path, shell_complete=suggest.backends
)


def _why_and_until(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of everything that makes an override."""
    reason = click.option("--reason", metavar="TEXT", default="", help="Why, for those who look.")
    expires = click.option(
        "--expires", metavar="TIME", type=duration_s, help="End it by itself after that: 30min, 1h."
    )
    return reason(expires(command))


@click.group("backend")
def command() -> None:
    """Show, drain, disable, enable and weigh backends.

    What is asked for here holds beside the file: over reloads, restarts and reboots, until it is
    cleared (lb-xdp override clear) or its time is over.

    \b
    Example:
      sudo lb-xdp backend drain web/web1 --reason "new disks" --wait
      sudo lb-xdp backend enable web/web1
    """


@command.command("show")
@click.argument(
    "name", metavar="[SERVICE[/BACKEND]]", required=False, shell_complete=suggest.backends
)
@click.option(
    "-o",
    "--output",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="json: a list of backends as in the status, each with its service.",
)
@click.pass_obj
def show(target: Target, name: str | None, output: str) -> None:
    """Show backends: all of them, those of a service, or one.

    Says of each what the file says, what was asked for, by whom and why, and what counts now.

    \b
    Example:
      sudo lb-xdp backend show web/web1
    """
    snapshot = connect(target).snapshot()
    services = _chosen(snapshot, name) if name else list(snapshot.services)
    if output == "json":
        found = [
            {"service": service.name, **dataclasses.asdict(backend)}
            for service in services
            for backend in service.backends
        ]
        click.echo(json.dumps(found, indent=2, ensure_ascii=False))
        return
    columns = shutil.get_terminal_size((PIPED_COLUMNS, 24)).columns
    click.echo(render(services, now_s=snapshot.timestamp_s, columns=columns), nl=False)


def _chosen(snapshot: Snapshot, name: str) -> list[ServiceStatus]:
    """Return the service that is meant, with one backend or all. Raises click.UsageError."""
    service_name, slash, backend_name = name.partition("/")
    services = {service.name: service for service in snapshot.services}
    service = services.get(service_name)
    if service is None:
        raise click.UsageError(
            f"No service is named {service_name}. There are: {', '.join(services)}."
        )
    if not slash:
        return [service]
    backends = {backend.name: backend for backend in service.backends}
    if backend_name not in backends:
        raise click.UsageError(
            f"No backend of {service_name} is named {backend_name}. "
            f"There are: {', '.join(backends)}."
        )
    return [dataclasses.replace(service, backends=(backends[backend_name],))]


@command.command("drain")
@_backend
@_why_and_until
@click.option("--wait", is_flag=True, help="Return when no flow is left on it.")
@click.option(
    "--timeout",
    metavar="TIME",
    type=duration_s,
    default="5m",
    show_default=True,
    help="How long to wait for that.",
)
@click.pass_obj
def drain(
    target: Target,
    path: BackendPath,
    reason: str,
    expires: float | None,
    *,
    wait: bool,
    timeout: float,
) -> None:
    """Give a backend no new flows; those that it has go on.

    It is probed as before, and cut when it fails. With --wait the command says how many flows are
    left, and returns when there is none; after the timeout it ends with exit code 1, and the
    backend stays drained, as it does after Ctrl-C.

    In services that do not record every flow, one that has been silent since the drain is not
    known until gateway.flow_table.settle (15 min) is over: wait longer than that to be sure.

    \b
    Example:
      sudo lb-xdp backend drain web/web1 --reason "new disks" --wait --timeout 20m
    """
    client = connect(target)
    asked = client.set_override(*path, **_asked("drain", reason, expires))
    click.echo(_sentence(path, asked))
    if wait:
        from lb_xdp.cli.draining import wait_until_empty  # noqa: PLC0415 - for --wait alone

        wait_until_empty(client, path, since_timestamp_s=time.time(), timeout_s=timeout)


@command.command("disable")
@_backend
@_why_and_until
@click.option("--cut", is_flag=True, help="Cut it off at once: its open flows break.")
@click.pass_obj
def disable(
    target: Target, path: BackendPath, reason: str, expires: float | None, *, cut: bool
) -> None:
    """Drain a backend and let its server alone: no probes (maint).

    \b
    Example:
      sudo lb-xdp backend disable web/web1 --reason "kernel update" --expires 1h
    """
    admin = "down" if cut else "maint"
    asked = connect(target).set_override(*path, **_asked(admin, reason, expires))
    click.echo(_sentence(path, asked))


@command.command("enable")
@_backend
@click.pass_obj
def enable(target: Target, path: BackendPath) -> None:
    """Take drain, maint or down back: health alone decides again.

    \b
    Example:
      sudo lb-xdp backend enable web/web1
    """
    click.echo(_sentence(path, connect(target).set_override(*path, admin="ready")))


@command.command("weight")
@_backend
@click.argument("weight", metavar="N|default")
@_why_and_until
@click.pass_obj
def weight(
    target: Target, path: BackendPath, weight: str, reason: str, expires: float | None
) -> None:
    """Give a backend another weight than the file, 0 to 65535; default is the file's again.

    \b
    Example:
      sudo lb-xdp backend weight web/web1 50 --expires 30min
      sudo lb-xdp backend weight web/web1 default
    """
    if weight == "default":
        connect(target).clear_override(*path, kind="weight")
        click.echo(f"{path}: the file's weight")
        return
    if not (weight.isascii() and weight.isdigit()):
        raise click.UsageError(f"{weight!r} is no weight: give an integer from 0 on, or default.")
    asked = connect(target).set_override(*path, weight=int(weight), **_details(reason, expires))
    click.echo(_sentence(path, asked))


def _asked(admin: str, reason: str, expires_s: float | None) -> dict[str, Any]:
    return {"admin": admin, **_details(reason, expires_s)}


def _details(reason: str, expires_s: float | None) -> dict[str, Any]:
    return {"reason": reason} | ({} if expires_s is None else {"expires": expires_s})


def _sentence(path: BackendPath, asked: list[dict[str, Any]]) -> str:
    """Return ``web/web1: drain, weight 50``: all that holds of it by now."""
    words = [f"weight {o['value']}" if o["kind"] == "weight" else o["value"] for o in asked]
    if not any(override["kind"] == "admin" for override in asked):
        words.insert(0, "ready")
    return f"{path}: {', '.join(words)}"
