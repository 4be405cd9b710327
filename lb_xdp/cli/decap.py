"""``lb-xdp decap``: on a backend host, undo the tunnels of its gateways. Needs no daemon."""

from __future__ import annotations

import json
from ipaddress import ip_network
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from lb_xdp.datapath.decap import Running
    from lb_xdp.datapath.decap_program import Network

GUE_PORT = 6080
PORTS = 65_535


def _networks(
    ctx: click.Context, param: click.Parameter, values: tuple[str, ...]
) -> tuple[Network, ...]:
    """Return IPv4 and IPv6 addresses, alone or with a prefix length, as networks."""
    try:
        return tuple(ip_network(value) for value in values)
    except ValueError as error:
        raise click.BadParameter(f"{error}.", ctx, param) from error


@click.group("decap")
def command() -> None:
    """Undo the tunnels of gateways, on a backend host.

    A gateway in mode ipip or gue sends packets in a tunnel. The kernel of a backend undoes it where
    it has the modules; this program does it on every kernel that lb-xdp runs on. It is small, needs
    no daemon, and stays until it is detached or the host restarts.

    \b
    Example:
      sudo lb-xdp decap attach eth0 --trust 172.16.0.0/16 --vip 203.0.113.10
      sudo lb-xdp decap status
      sudo lb-xdp decap detach eth0
    """


@command.command("attach")
@click.argument("interface", metavar="IFACE")
@click.option(
    "--trust",
    metavar="PREFIX",
    callback=_networks,
    multiple=True,
    required=True,
    help="Outer source addresses to take tunnels from; may be repeated. A gateway sends from its "
    "gateway.tunnel_sources: 172.16.0.0/16 and 100::/64 unless its configuration says otherwise.",
)
@click.option(
    "--vip",
    "vips",
    metavar="ADDR",
    callback=_networks,
    multiple=True,
    help="Inner destination to let out; may be repeated. Without it, any.",
)
@click.option(
    "--hook",
    type=click.Choice(["xdp", "tc"]),
    default="xdp",
    show_default=True,
    help="tc: where XDP is not wanted, or another XDP program is.",
)
@click.option(
    "--xdp-mode",
    type=click.Choice(["auto", "native", "generic"]),
    default="auto",
    show_default=True,
    help="auto: native where the driver can.",
)
@click.option(
    "--gue-port",
    type=click.IntRange(1, PORTS),
    default=GUE_PORT,
    show_default=True,
    help="The gateways' gateway.gue_port.",
)
@click.option("--replace", is_flag=True, help="Replace a program that is not ours.")
def attach(
    interface: str,
    *,
    trust: tuple[Network, ...],
    vips: tuple[Network, ...],
    hook: str,
    xdp_mode: str,
    gue_port: int,
    replace: bool,
) -> None:
    """Attach to an interface, or give what is attached new settings.

    Only whole tunnel packets to this host's MAC address, from a trusted source, are undone; all
    else passes as it came, to the kernel's own tunnels for one. Attached again, the new settings
    take the place of the old ones at once, and counters go on.

    \b
    Example:
      sudo lb-xdp decap attach eth0 --trust 172.16.0.0/16 --trust 100::/64
      sudo lb-xdp decap attach eth0 --trust 172.16.0.0/16 --vip 203.0.113.10 --hook tc
    """
    from lb_xdp.core.model import XdpMode  # noqa: PLC0415 - --help must not import numpy
    from lb_xdp.datapath import decap, decap_program  # noqa: PLC0415 - the same

    notices = decap.attach(
        interface,
        decap_program.Settings(trust, vips, gue_port),
        hook=decap_program.Hook(hook),
        mode=XdpMode(xdp_mode),
        replace=replace,
    )
    for notice in notices:
        click.echo(f"warning: {notice}", err=True)
    for running in decap.status(interface):
        click.echo(f"{interface}: {running.mode}, program id {running.program_id}")


@command.command("status")
@click.option(
    "-o",
    "--output",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="json: a list, with every counter.",
)
def status(output: str) -> None:
    """Show where tunnels are undone, and what became of packets.

    \b
    Example:
      sudo lb-xdp decap status
      sudo lb-xdp decap status -o json | jq '.[].packets.untrusted'
    """
    from lb_xdp.datapath import decap, decap_program  # noqa: PLC0415 - --help must not import numpy

    found = decap.status()
    if output == "json":
        click.echo(json.dumps([_as_json(running) for running in found], indent=2))
        return
    if not found:
        click.echo("no interface undoes tunnels")
    meanings = {reason.name: reason.meaning for reason in decap_program.layout().reasons}
    for running in found:
        _print(running, meanings)


@command.command("detach")
@click.argument("interface", metavar="IFACE")
def detach(interface: str) -> None:
    """Remove the program: tunnels are the kernel's again.

    \b
    Example:
      sudo lb-xdp decap detach eth0
    """
    from lb_xdp.datapath import decap  # noqa: PLC0415 - --help must not import numpy

    removed = decap.detach(interface)
    for item in removed:
        click.echo(f"removed {item}")
    if not removed:
        click.echo(f"nothing to detach: no decap program of ours is on {interface}")


def _as_json(running: Running) -> dict[str, object]:
    """Return what JSON shows of an interface."""
    settings = running.settings
    return {
        "interface": running.interface,
        "hook": running.hook.value,
        "mode": running.mode,
        "id": running.program_id,
        "trust": [str(prefix) for prefix in settings.trust],
        "vips": [_short(prefix) for prefix in settings.vips],
        "gue_port": settings.gue_port,
        "packets": dict(running.packets),
    }


def _print(running: Running, meanings: dict[str, str]) -> None:
    """Print an interface, its settings, and the reasons that packets had."""
    settings = running.settings
    click.echo(f"{running.interface}  {running.mode}  id {running.program_id}")
    click.echo(f"  trust     {', '.join(map(str, settings.trust))}")
    click.echo(f"  vips      {', '.join(map(_short, settings.vips)) or 'any'}")
    click.echo(f"  gue port  {settings.gue_port}")
    for reason, packets in running.packets.items():
        if packets:
            click.echo(f"  {packets:>14}  {reason:<13} {meanings[reason]}")


def _short(prefix: Network) -> str:
    """Return a single address without its prefix length."""
    whole = prefix.prefixlen == prefix.max_prefixlen
    return str(prefix.network_address) if whole else str(prefix)
