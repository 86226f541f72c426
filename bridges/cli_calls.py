"""The commands about one call: make it, or ask where it would go."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import typer
from rich.table import Column, Table
from rich.text import Text

from bridges import asking
from bridges.faults import Fault, Kind
from bridges.settings import Settings
from bridges.terminal import (
    NO,
    UNKNOWN,
    WRONG,
    JsonOption,
    SettingsOption,
    ask_bridge,
    body,
    command_group,
    did_you_mean,
    fail,
    out,
    print_json,
    settings_of,
)
from bridges.tongues import Tongues

Record = Mapping[str, Any]

commands = command_group()


@commands.command()
def call(
    service: Annotated[str, typer.Argument(help="The service to call.")],
    method: Annotated[str, typer.Argument(help="The method's legacy name, as `xcp-bridge idl list` prints it.")],
    arguments: Annotated[list[str] | None, typer.Argument(metavar="[ARG=JSON]...", help="Arguments by name.")] = None,
    door: Annotated[asking.AskedDoor, typer.Option(help="The door to call at.")] = asking.AskedDoor.BUS,
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Call a method as any caller would, at the door you choose."""
    loaded = settings_of(settings)
    try:
        result = asyncio.run(asking.ask(loaded, service, method, arguments or [], door))
    except asking.WrongCall as error:
        fail(WRONG, str(error))
    except Fault as fault:
        code = UNKNOWN if fault.kind is Kind.UNAVAILABLE else NO
        if as_json:
            print_json(
                {"kind": fault.kind, "code": fault.code, "text": fault.text, "argument": asking.plain(fault.argument)}
            )
            raise typer.Exit(code) from None
        fail(code, fault.text if fault.kind in (Kind.DECLARED, Kind.UNDECLARED) else fault.sentence)
    print_json(result)


@commands.command()
def explain(
    service: Annotated[str, typer.Argument(help="The service called.")],
    method: Annotated[str | None, typer.Argument(help="The method's legacy name.")] = None,
    arguments: Annotated[list[str] | None, typer.Argument(metavar="[ARG=JSON]...", help="Arguments by name.")] = None,
    door: Annotated[asking.AskedDoor, typer.Option(help="The door that it comes in at.")] = asking.AskedDoor.BUS,
    call: Annotated[
        int | None, typer.Option(metavar="NUMBER", help="A call that was made, instead of a METHOD.")
    ] = None,
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Which rule sends a call where it goes, and why. Calls nobody."""
    loaded = settings_of(settings)
    request: dict[str, object] = {"verb": "explain", "service": service}
    if (method is None) is (call is None):
        fail(WRONG, "explain needs a METHOD, or --call NUMBER, and not both")
    if method is None:
        request |= {"call": call}
    else:
        try:
            values = _read_call(loaded, service, method, arguments or [])
        except asking.WrongCall as error:
            fail(WRONG, str(error))
        request |= {"method": method, "arguments": values, "door": door.value}
    answer = ask_bridge(loaded, request)
    if as_json:
        print_json(body(answer))
        return
    name = method or answer["call"].get("method", f"call {call}")
    out.print(f"{name} of {service}, at the {answer['door']} door", style="bold", markup=False)
    if call is not None:
        _print_call(answer["call"])
    _print_rules(answer["rules"])
    out.print(f"-> {answer['result']}", style="bold", markup=False)


def _read_call(settings: Settings, service: str, method: str, words: list[str]) -> dict[str, object] | None:
    """The arguments of a call that could be made, None when none were typed. Raises WrongCall."""
    chosen, interface = asking.choose(settings, service)
    found = interface.method(method)
    if found is None:
        hint = did_you_mean(method, interface.method_names) or f"see xcp-bridge idl list {service}"
        raise asking.WrongCall(f"{service} has no method {method!r}; {hint}")
    if not words:
        return None
    values = asking.read_arguments(Tongues(chosen).frame().translation.values, found, words)
    return {name: asking.plain(value) for name, value in values.items()}


def _print_call(call: Record) -> None:
    for name, value in call.items():
        text = value if isinstance(value, str) else json.dumps(value, default=str)
        out.print(f"  {name:<10}  {text}", markup=False, soft_wrap=True)


def _print_rules(rules: Iterable[Record]) -> None:
    table = Table.grid("number", "verdict", "rule", Column(overflow="fold"), padding=(0, 2))
    for number, rule in enumerate(rules, 1):
        style = "bold" if rule["verdict"] == "decides" else ""
        table.add_row(f"{number:>3}", rule["verdict"], Text(rule["rule"]), Text(rule["text"]), style=style)
    out.print(table)
