"""A plan as text: first what differs, service by service, then what it costs in all.

A character in front says what becomes of a thing: + added, - removed, ~ changed.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

_SIGNS = {"added": "+", "removed": "-", "changed": "~"}
_INDENT = "  "
_NAMED = 8  # backends that are named where there are many


def render(plan: dict[str, Any], *, columns: int) -> str:
    """Return a plan of the API as text that ends in a newline."""
    blocks = [_gateway(plan), *map(_service, plan["services"]), list(_sum(plan))]
    lines = [line for block in blocks if block for line in (*block, "")]
    return "\n".join(folded for line in lines[:-1] for folded in _folded(line, columns)) + "\n"


def _folded(line: str, columns: int) -> list[str]:
    indent = " " * (len(line) - len(line.lstrip()) + 4)
    return textwrap.wrap(line, max(columns, 40), subsequent_indent=indent) or [""]


def _gateway(plan: dict[str, Any]) -> list[str]:
    settings = [f"~ {_setting(each)}" for each in plan["settings"]]
    return [*settings, *(f"warning: {warning}" for warning in plan["warnings"])]


def _setting(setting: dict[str, str]) -> str:
    return f"{setting['key']}: {setting['before']} -> {setting['after']}"


def _service(service: dict[str, Any]) -> list[str]:
    head = f"{_SIGNS[service['change']]} {service['name']}  {service['address']}"
    return [head, *(f"{_INDENT}{line}" for line in _details(service))]


def _details(service: dict[str, Any]) -> Iterator[str]:
    for sign, names in (("+", service["added"]), ("-", service["removed"])):
        if names:
            yield f"{sign} {_backends(names)}"
    for weight in service["weights"]:
        yield f"~ backend {weight['backend']}: weight {weight['before']} -> {weight['after']}"
    for setting in service["settings"]:
        yield f"~ {_setting(setting)}"
    if service["change"] == "added":
        return
    moved, slots = service["moved_slots"], service["slots"]
    yield f"slots: {moved:,} of {slots:,} move, {service['moved_share']:.1%}"
    yield f"flows: {_flows(service['flows'])}"


def _backends(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{'backend' if len(names) == 1 else 'backends'} {', '.join(names[:_NAMED])}{more}"


def _flows(flows: dict[str, Any]) -> str:
    if flows["basis"] == "unknown":
        return f"unknown: {flows['how']}"
    about = "about " if flows["basis"] == "estimated" else ""
    if not flows["moved"] and not flows["broken"]:
        return f"{about}none touched ({flows['how']})"
    return (
        f"{about}{flows['broken']:,} would break, {about}{flows['moved']:,} stay where they are "
        f"while their slots move ({flows['how']})"
    )


def _sum(plan: dict[str, Any]) -> Iterator[str]:
    if plan["restart_loses"]:
        yield f"a restart into this command's version would lose {', '.join(plan['restart_loses'])}"
    if plan["not_up"]:
        yield f"new, and not up yet, so without slots: {', '.join(plan['not_up'][:_NAMED])}"
    if not (plan["services"] or plan["settings"] or plan["generation"]):
        yield f"{plan['source']}: nothing would change"
        return
    unchanged = plan["unchanged"]
    yield f"{plan['source']}: {_count(len(plan['services']))} would change, {unchanged:,} would not"
    if plan["refused"]:
        return
    share = plan["moved_share_max"]
    yield f"{plan['moved_slots']:,} slots would move, at most {share:.1%} of one service's"
    if plan["generation"]:
        yield "another program would take the present one's place; it was compiled and tried"


def _count(services: int) -> str:
    return "1 service" if services == 1 else f"{services:,} services"
