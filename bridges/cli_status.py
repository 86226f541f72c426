"""`xcp-bridge status`: where the services stand and what there is to say about them, once or again every second."""

from __future__ import annotations

import itertools
import textwrap
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Annotated, Any, Final

import typer
from rich.console import Group
from rich.live import Live
from rich.table import Column, Table
from rich.text import Text

from bridges.settings import Settings
from bridges.terminal import (
    WRONG,
    JsonOption,
    NotDone,
    SettingsOption,
    ask,
    ask_bridge,
    command_group,
    err,
    fail,
    out,
    print_json,
    settings_of,
)

Record = Mapping[str, Any]

commands = command_group()

_WORTH_SAYING: Final = ("in_flight", "held", "in_doubt", "abandoned", "refused")
_PLACES_SHOWN: Final = 3  # --json has them all
_UNITS: Final = ((86400, "d"), (3600, "h"), (60, "min"))


@commands.command()
def status(
    settings: SettingsOption = None,
    as_json: JsonOption = False,
    watch: Annotated[bool, typer.Option("--watch", help="Show it again every second until Ctrl-C.")] = False,
) -> None:
    """Services: stage, authority, epoch, doors, calls, faults."""
    loaded = settings_of(settings)
    try:
        if watch:
            with suppress(KeyboardInterrupt):
                _watch(loaded, as_json=as_json)
        else:
            _print(_services(loaded), as_json=as_json)
    except NotDone as refusal:
        fail(refusal.code, str(refusal))


def show_service(settings: Settings, service: str, *, as_json: bool) -> None:
    """Where one service stands. Ends the command when there is no such service."""
    services = ask_bridge(settings, {"verb": "status"})["services"]
    if service not in services:
        fail(WRONG, f"no service {service!r} in the settings; known: {', '.join(services) or 'none'}")
    if as_json:
        print_json(services[service])
    else:
        out.print(_picture({service: services[service]}))
        print_checklist(services[service].get("checklist", ()))


def print_checklist(left: Iterable[str]) -> None:
    """What is left to do for a service that is complete, if it is."""
    for number, text in enumerate(left, 1):
        title = "\nwhat is left to do\n" if number == 1 else ""
        out.print(title + textwrap.fill(f"{number}. {text}", out.width, subsequent_indent="   "), markup=False)


def tally(counts: Record) -> str:
    """Counters in words: `12 sent, 3 dropped (2 full, 1 late)`."""
    parts = []
    for name, value in counts.items():
        if not isinstance(value, Mapping):
            parts.append(f"{value} {name.replace('_', ' ')}")
        elif name != "dropped":
            parts.append(f"{name.replace('_', ' ')} ({tally(value)})")
        elif value:
            parts.append(f"{sum(value.values())} dropped ({tally(value)})")
    return ", ".join(parts)


def _services(settings: Settings) -> dict[str, Record]:
    services: dict[str, Record] = ask(settings, {"verb": "status"})["services"]
    return services


def _watch(settings: Settings, *, as_json: bool) -> None:
    if as_json or not out.is_terminal:
        while True:
            _print(_services(settings), as_json=as_json)
            time.sleep(1)
    with Live(console=out, auto_refresh=False) as live:
        while True:
            services = _services(settings)
            live.update(Group(_picture(services), *_alarms(services)), refresh=True)
            time.sleep(1)


def _print(services: dict[str, Record], *, as_json: bool) -> None:
    if as_json:
        print_json(services)
        return
    out.print(_picture(services))
    for line in _alarms(services):
        err.print(line)


def _alarms(services: dict[str, Record]) -> list[Text]:
    return [
        Text(f"{name}: {alarm}: {text}", style="red")
        for name, service in services.items()
        for alarm, text in service["alarms"].items()
    ]


def _picture(services: dict[str, Record]) -> Group:
    """The table, and below it what does not fit into a row."""
    notes = Table.grid("service", "about", Column(overflow="fold"), padding=(0, 2))
    for name, service in services.items():
        for number, (label, text) in enumerate(_notes(name, service)):
            notes.add_row("" if number else Text(name), Text(label), text)
    return Group(_table(services), Text(), notes) if notes.rows else Group(_table(services))


def _table(services: dict[str, Record]) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("service", "stage", "authority", "epoch", "doors", "calls"):
        table.add_column(heading, no_wrap=True)
    for name, service in services.items():
        calls = service["calls"]
        counts = [f"{calls['answered']} answered"]
        counts += [f"{calls[key]} {key.replace('_', ' ')}" for key in _WORTH_SAYING if calls[key]]
        counts += [f"{count} {kind}" for kind, count in service["faults"].items()]
        table.add_row(
            name,
            service["stage"],
            service["authority"],
            str(service["epoch"]),
            "\n".join(f"{door}: {keeper}" for door, keeper in service["doors"].items()),
            "\n".join(counts),
            style="red" if service["alarms"] or service.get("frozen") else None,
        )
    return table


def _notes(name: str, service: Record) -> Iterator[tuple[str, Text]]:
    """A label and what there is to say, for each member of the record that says something."""
    if service.get("frozen"):
        yield "frozen", Text(service["frozen"], style="red")
    if service.get("in_doubt_open"):
        noting = f"take note of them: xcp-bridge acknowledge {name} --reason TEXT"
        yield "in doubt", Text(f"{service['in_doubt_open']} calls; {noting}", style="yellow")
    if service.get("held_now"):
        yield "held", Text("new calls wait until the move is over", style="yellow")
    if service.get("watching"):
        yield "watching", Text(service["watching"])
    if under := service.get("capture"):
        lost = "; " + tally({"lost": dict(under["lost"])}) if under["lost"] else ""
        trouble = f"; {under['trouble']}" if under["trouble"] else ""
        yield "capture", Text(f"into {under['name']}{lost}{trouble}", style="yellow" if lost or trouble else "")
    for member in ("comparison", "round_trips"):
        if any((counts := service.get(member, {})).values()):
            yield member.replace("_", " "), _compared(counts)
    if service.get("observed") and (lines := list(_observed(service))):
        yield "observed", Text("\n".join(lines))
    if service.get("unused"):
        ages = (f"{door} {_age(seconds)}" for door, seconds in service["unused"].items())
        yield "last call", Text(", ".join(ages))
    if service.get("next"):
        yield "next", Text(", ".join(service["next"]))


def _observed(service: Record) -> Iterator[str]:
    """What was seen at the doors that are the legacy daemon's own: a line for its tree, one for each of its sockets."""
    seen, doors = service["observed"], service["doors"]
    if doors.get("xenstore") == "legacy":
        exchanges = seen["exchanges"]
        counts = {name: count for name, count in exchanges.items() if count and not isinstance(count, Mapping)}
        if incomplete := {name: count for name, count in exchanges.get("incomplete", {}).items() if count}:
            counts["incomplete"] = incomplete
        yield tally({"exchanges": counts or {"seen": 0}})
    if methods := seen.get("methods"):
        yield "of " + ", ".join(f"{name} {counts['seen']}" for name, counts in methods.items())
    if "legacy" in (doors.get("http"), doors.get("framed")):
        for path, socket in seen.get("sockets", {}).items():
            callers = ", ".join(f"{name} {count}" for name, count in socket["callers"].items())
            yield f"{path}: {socket['connections']} connections" + (f" of {callers}" if callers else "")


def _compared(counts: Record) -> Text:
    """What was compared, and the places that differed most with an example of each."""
    lines = [tally({name: value for name, value in counts.items() if name not in ("methods", "fields")})]
    for place, seen in itertools.islice(counts.get("fields", {}).items(), _PLACES_SHOWN):
        what = f"legacy {seen['legacy']}, bus {seen['bus']}" if seen["legacy"] else seen["bus"]
        lines.append(f"{place} differs, {seen['count']} times: {what}")
    return Text("\n".join(lines), style="yellow" if counts["different"] else "")


def _age(seconds: float | None) -> str:
    """How long ago, roughly; None is a door that nobody has called at."""
    if seconds is None:
        return "never"
    for length, unit in _UNITS:
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"
