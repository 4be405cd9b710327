"""``lb-xdp events``: what happened, when and why."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from lb_xdp.cli import suggest
from lb_xdp.cli.connect import connect
from lb_xdp.core.durations import parse_duration_s
from lb_xdp.core.event import Event, EventKind, from_document

if TYPE_CHECKING:
    from lb_xdp.api.client import Client
    from lb_xdp.cli.target import Target

WAIT_S = 30.0  # how long one question of --follow waits for an answer


class Since(click.ParamType[dict[str, str]]):
    """An age (``90s``, ``1h``) or the number of the last event that was seen."""

    name = "age or number"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> dict[str, str]:
        """Return the API's parameters for it."""
        text = str(value)
        if text.isdigit():
            return {"after": text}
        age_s = parse_duration_s(text)
        if age_s is None:
            self.fail(f"{text!r} is neither an age (90s, 15min, 1h) nor a number", param, ctx)
        return {"since": f"{-age_s:f}"}


@click.command("events")
@click.option("--since", type=Since(), metavar="AGE|NUMBER", help="Only later ones: 1h, 90s, 4711.")
@click.option(
    "--service", metavar="NAME", help="Only of this service.", shell_complete=suggest.services
)
@click.option(
    "--backend", metavar="NAME", help="Only of backends of this name.",
    shell_complete=suggest.backend_names,
)  # fmt: skip
@click.option(
    "--kind", "kinds", multiple=True, type=click.Choice([kind.value for kind in EventKind]),
    metavar="KIND", help="Only of this kind; may be repeated.",
)  # fmt: skip
@click.option("-n", "--newest", type=click.IntRange(0, 10_000), default=50, show_default=True,
              help="At most so many, the last ones.")  # fmt: skip
@click.option("--follow", is_flag=True, help="Go on showing what happens, until Ctrl-C.")
@click.option(
    "-o",
    "--output",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="json: one object a line, with everything.",
)
@click.pass_obj
def command(
    target: Target,
    *,
    since: dict[str, str] | None,
    service: str | None,
    backend: str | None,
    kinds: tuple[str, ...],
    newest: int,
    output: str,
    follow: bool,
) -> None:
    """Show what happened, when and why.

    That is changes of state with their cause, reloads, overrides, starts and stops. Events are kept
    across restarts, the latest 8 to 16 MB of them. Each has a number that never comes again:
    --since NUMBER shows what came after it.

    \b
    Example:
      sudo lb-xdp events --since 1h
      sudo lb-xdp events --service web --backend web1 --follow
      sudo lb-xdp events --kind backend_state -o json | jq .cause
    """
    conditions = {"service": service, "backend": backend, "kind": ",".join(kinds)}
    query = {key: value for key, value in conditions.items() if value}
    client = connect(target)
    for event in _events(client, query, since or {}, newest, follow=follow):
        click.echo(json.dumps(event, ensure_ascii=False) if output == "json" else line(event))
        sys.stdout.flush()


def _events(
    client: Client, query: dict[str, str], since: dict[str, str], newest: int, *, follow: bool
) -> Iterator[dict[str, object]]:
    """Yield events as they are; with ``follow`` those to come as well."""
    shown = client.events({**query, **since, "newest": str(newest)})
    yield from shown
    if not follow:
        return
    last = str(shown[-1]["number"]) if shown else since.get("after") or _latest(client)
    while True:
        more = client.events({**query, "after": last, "newest": "10000", "wait": f"{WAIT_S:g}"})
        yield from more
        last = str(more[-1]["number"]) if more else last


def _latest(client: Client) -> str:
    """Return the number of the latest event of any kind: what comes after it is new."""
    return next((str(event["number"]) for event in client.events({"newest": "1"})), "0")


def line(document: dict[str, object]) -> str:
    """Return an event as one line: number, local time, kind, who, from what to what, and why."""
    event = from_document(document)
    when = datetime.fromtimestamp(event.timestamp_s, UTC).astimezone()
    who = "/".join(filter(None, (event.service, event.backend)))
    columns = (f"{event.number:>6}", f"{when:%Y-%m-%d %H:%M:%S}.{when.microsecond // 1000:03}")
    text = " ".join(filter(None, (_kind(event), who, _change(event))))
    return "  ".join((*columns, text)) + (f": {_why(event)}" if _why(event) else "")


def _kind(event: Event) -> str:
    return "" if event.kind is EventKind.BACKEND_STATE else event.kind.value.replace("_", " ")


def _change(event: Event) -> str:
    return " -> ".join(filter(None, (event.before, event.after)))


def _why(event: Event) -> str:
    took = f" ({event.duration_s * 1e3:.1f} ms)" if event.duration_s is not None else ""
    by = f", by {event.author}" if event.author else ""
    return f"{event.cause}{took}{by}"
