"""The ledger of homes and handles, on real files."""

from __future__ import annotations

import asyncio
import json
import random
import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from bridges import ledger
from bridges.calls import Call, Door, Side, Tagged
from bridges.durable import Durable, NotDurable
from bridges.handles import HOMES, NOTHING, Handle, Home
from bridges.interfaces import model
from bridges.interfaces.model import Method
from bridges.ledger import Aliases, Ledger

XENOPSD = model.load("xenopsd")
XAPI = model.load("xapi")
ZEROS = "0" * 20


@contextmanager
def opened(directory: Path) -> Iterator[Ledger]:
    """A ledger whose clock says 1, 2, 3."""
    clock = count(1)
    with closing(Durable(directory / "handles.sqlite", ledger.SCHEMA, 1)) as durable:
        yield Ledger(durable, lambda: str(next(clock)))


def reference() -> str:
    return f"OpaqueRef:{uuid.uuid4()}"


def sessions(number: int) -> list[Handle]:
    return [Handle("session", reference(), reference()) for _ in range(number)]


def method_of(name: str) -> Method:
    found = XENOPSD.method(name) or XAPI.method(name)
    assert found is not None
    return found


def call(name: str, door: Door = Door.HTTP, **arguments: Any) -> Call:
    return Call(method_of(name), arguments, door, None)


async def test_the_same_process_stays_the_same_home(tmp_path: Path) -> None:
    """A home ends with the process or with the side, is known after a restart, and numbers only grow."""
    with opened(tmp_path) as homes:
        assert homes.home("xenopsd") is None
        first = await homes.settle("xenopsd", Side.LEGACY, "1:5")
        assert first == homes.home("xenopsd") == Home(1, Side.LEGACY)
        assert await homes.settle("xenopsd", Side.LEGACY, "1:5") == first
        assert await homes.settle("storage", Side.LEGACY, "1:5") == Home(1, Side.LEGACY)
    with opened(tmp_path) as homes:
        assert homes.home("xenopsd") == first
        assert await homes.settle("xenopsd", Side.LEGACY, "1:5") == first
        assert await homes.settle("xenopsd", Side.LEGACY, "2:7") == Home(2, Side.LEGACY)
        assert not homes.was_on_bus("xenopsd")
        assert await homes.settle("xenopsd", Side.BUS, "2:7") == Home(3, Side.BUS)
        assert await homes.settle("xenopsd", Side.LEGACY, "1:5") == Home(4, Side.LEGACY)
    with opened(tmp_path) as homes:
        assert homes.home("xenopsd") == Home(4, Side.LEGACY)
        assert homes.was_on_bus("xenopsd")
        assert not homes.was_on_bus("storage")


async def test_a_home_is_fresh_until_it_was_settled_otherwise(tmp_path: Path) -> None:
    """Callers may have reached the process while no bridge stood before it, and that is not forgotten."""
    with opened(tmp_path) as homes:
        assert await homes.settle("xenopsd", Side.LEGACY, "a", fresh=True) == Home(1, Side.LEGACY, fresh=True)
        assert await homes.settle("xenopsd", Side.LEGACY, "a", fresh=True) == Home(1, Side.LEGACY, fresh=True)
    with opened(tmp_path) as homes:
        assert homes.home("xenopsd") == Home(1, Side.LEGACY, fresh=True)
        assert await homes.settle("xenopsd", Side.LEGACY, "a") == Home(1, Side.LEGACY)
        assert await homes.settle("xenopsd", Side.LEGACY, "a", fresh=True) == Home(1, Side.LEGACY)
    with opened(tmp_path) as homes:
        assert homes.home("xenopsd") == Home(1, Side.LEGACY)


async def test_numbers_of_homes_begin_again(tmp_path: Path) -> None:
    """After the last one that fits into an alias, and what the first home of a number gave out is not the second's."""
    (old,) = sessions(1)
    with opened(tmp_path) as homes:
        await homes.add("xapi", await homes.settle("xapi", Side.LEGACY, "a"), [old])
        await homes.settle("xapi", Side.BUS, "b")
    with closing(sqlite3.connect(tmp_path / "handles.sqlite")) as database, database:
        database.execute("UPDATE home SET number = ? WHERE number = 2", (HOMES,))
    with opened(tmp_path) as homes:
        assert await homes.settle("xapi", Side.LEGACY, "c") == Home(1, Side.LEGACY)
        assert homes.native_of("xapi", "session", old.alias) is None
    with opened(tmp_path) as homes:
        assert homes.home("xapi") == Home(1, Side.LEGACY)
        assert homes.was_on_bus("xapi")
        assert homes.native_of("xapi", "session", old.alias) is None
        assert await homes.rows("xapi") == []


async def test_a_handle_is_known_both_ways_and_after_a_restart(tmp_path: Path) -> None:
    """Only while its home is the present one, and by its service and kind."""
    (one, other) = kept = sessions(2)
    with opened(tmp_path) as homes:
        present = await homes.settle("xapi", Side.LEGACY, "a")
        assert not homes.has_handles("xapi")
        await homes.add("xapi", present, kept)
        assert homes.has_handles("xapi")
        assert homes.native_of("xapi", "session", one.alias) == one.native
        assert homes.alias_of("xapi", "session", one.native, present) == one.alias
        assert homes.native_of("xapi", "task", one.alias) is None
        assert homes.native_of("xenopsd", "session", one.alias) is None
        assert homes.alias_of("xapi", "session", one.native, Home(7, Side.LEGACY)) is None
        await homes.drop("xapi", "session", other.alias)
        assert homes.native_of("xapi", "session", other.alias) is None
        assert homes.alias_of("xapi", "session", other.native, present) is None
    with opened(tmp_path) as homes:
        assert homes.native_of("xapi", "session", one.alias) == one.native
        assert homes.native_of("xapi", "session", other.alias) is None
        await homes.settle("xapi", Side.BUS, "b")
        assert homes.native_of("xapi", "session", one.alias) is None
        assert not homes.has_handles("xapi")
    with opened(tmp_path) as homes:
        assert homes.native_of("xapi", "session", one.alias) is None


async def test_two_aliases_of_one_native(tmp_path: Path) -> None:
    """Callers that asked at once may be told different ones; both lead to it, and one may end before the other."""
    first = Handle("session", reference(), reference())
    second = first._replace(alias=reference())
    with opened(tmp_path) as homes:
        present = await homes.settle("xapi", Side.LEGACY, "a")
        await homes.add("xapi", present, [first, second])
        assert homes.native_of("xapi", "session", first.alias) == first.native
        assert homes.alias_of("xapi", "session", first.native, present) == second.alias
        await homes.drop("xapi", "session", first.alias)
        assert homes.native_of("xapi", "session", second.alias) == first.native
        assert homes.alias_of("xapi", "session", first.native, present) == second.alias


async def test_a_reference_that_stands_twice_in_a_result(tmp_path: Path) -> None:
    """It gets one alias."""
    entry = {"name": "C.m", "params": [], "result": {"list": "string"}, "produces": {"result.*": "session"}}
    errors = {"errors": {"variant": [{"name": "Bad", "args": None}]}}
    data = {"service": "sample", "types": errors, "handles": {"session": "reference"}, "methods": [entry]}
    service = model.decode(json.dumps(data).encode())
    method = service.method("C.m")
    assert method is not None
    native = reference()
    with opened(tmp_path) as homes:
        present = await homes.settle("sample", Side.LEGACY, "a")
        asked = Call(method, {}, Door.HTTP, None)
        shown: Any = await Aliases(service, homes).outward(asked, [native, native], present)
        assert shown[0] == shown[1] == homes.alias_of("sample", "session", native, present)


async def test_a_handle_of_a_home_that_is_over_is_only_written_down(tmp_path: Path) -> None:
    """A reply that comes after the move was for the process before: its handle leads nowhere now."""
    (late,) = sessions(1)
    with opened(tmp_path) as homes:
        before = await homes.settle("xapi", Side.LEGACY, "a")
        await homes.settle("xapi", Side.BUS, "b")
        await homes.add("xapi", before, [late])
        assert homes.native_of("xapi", "session", late.alias) is None
        assert [row["state"] for row in await homes.rows("xapi")] == ["fenced"]


async def test_what_an_operator_sees(tmp_path: Path) -> None:
    """Every handle with its home and its state, oldest first; of a session neither name can be used."""
    session = Handle(
        "session", "OpaqueRef:aaaaaaaa-0000-4000-8000-000000000000", "OpaqueRef:bbbbbbbb-0000-4000-8000-000000000000"
    )
    with opened(tmp_path) as homes:
        first = await homes.settle("xapi", Side.LEGACY, "a")
        await homes.add("xapi", first, [session])
        second = await homes.settle("xapi", Side.BUS, "b")
        await homes.add("xapi", second, [Handle("task", "900000200000000017", "17")])
        assert await homes.rows("xapi") == [
            {
                "kind": "session", "alias": "OpaqueRef:aaaaaaaa...", "native": "OpaqueRef:bbbbbbbb...", "home": 1,
                "side": "legacy", "issued": "2", "state": "fenced",
            },
            {
                "kind": "task", "alias": "900000200000000017", "native": "17", "home": 2, "side": "bus",
                "issued": "4", "state": "live",
            },
        ]  # fmt: skip
        assert await homes.rows("xenopsd") == []


async def test_the_past_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest handles of homes that are over stay, and homes that nothing points to go, but the newest of a side."""
    monkeypatch.setattr(ledger, "KEPT_OF_THE_PAST", 3)
    with opened(tmp_path) as homes:
        for number in range(1, 6):
            side = Side.BUS if number == 1 else Side.LEGACY
            present = await homes.settle("xapi", side, f"process {number}")
            await homes.add("xapi", present, [Handle("task", f"alias {number}", str(number))])
        assert [row["alias"] for row in await homes.rows("xapi")] == [f"alias {n}" for n in (2, 3, 4, 5)]
    with closing(sqlite3.connect(tmp_path / "handles.sqlite")) as database:
        assert [number for (number,) in database.execute("SELECT number FROM home")] == [1, 2, 3, 4, 5]
    with opened(tmp_path) as homes:
        for number in range(6, 10):
            await homes.settle("xapi", Side.LEGACY, f"process {number}")
        assert homes.was_on_bus("xapi")
    with closing(sqlite3.connect(tmp_path / "handles.sqlite")) as database:
        assert [number for (number,) in database.execute("SELECT number FROM home")] == [1, 3, 4, 5, 9]


async def test_the_present_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The handles that were used last stay, in memory and in the file."""
    monkeypatch.setattr(ledger, "KEPT_OF_THE_PRESENT", 2)
    monkeypatch.setattr(ledger, "_MARGIN", 2)
    one, two, three, four = kept = sessions(4)
    with opened(tmp_path) as homes:
        present = await homes.settle("xapi", Side.LEGACY, "a")
        await homes.add("xapi", present, kept[:3])
        assert homes.native_of("xapi", "session", one.alias) == one.native
        await homes.add("xapi", present, [four])
        known = [h for h in kept if homes.native_of("xapi", "session", h.alias)]
        assert known == [one, four]
        assert [homes.alias_of("xapi", "session", h.native, present) for h in (two, three)] == [None, None]
    with opened(tmp_path) as homes:
        assert [h for h in kept if homes.native_of("xapi", "session", h.alias)] == [one, four]


async def test_numbers_of_a_task(tmp_path: Path) -> None:
    """They are exchanged wherever they stand; what ends is forgotten, what failed to resolve is left to the daemon."""
    with opened(tmp_path) as homes:
        aliases = Aliases(XENOPSD, homes)
        present = await homes.settle("xenopsd", Side.LEGACY, "a")
        start = call("VM.start", debug_info="d", id="17", paused=False)
        assert aliases.inward(start, present).arguments == start.arguments
        assert await aliases.outward(start, "17", present) == "900000100000000017"
        stat = aliases.inward(call("Task.stat", debug_info="d", id="900000100000000017"), present)
        assert stat == call("Task.stat", debug_info="d", id="17")
        assert await aliases.outward(stat, {"id": "17", "dbg": "17"}, present) == {
            "id": "900000100000000017",
            "dbg": "17",
        }
        get = aliases.inward(call("UPDATES.get", debug_info="d", last_id=2**40 + 3, timeout=5), present)
        assert get.arguments == {"debug_info": "d", "last_id": 3, "timeout": 5}
        barrier: Any = (1, [Tagged("Vm", "17"), Tagged("Task", "17")])
        updates = await aliases.outward(get, ([barrier], [Tagged("Task", "18"), Tagged("Vm", "18")], 4), present)
        assert updates == (
            [(1, [Tagged("Vm", "17"), Tagged("Task", "900000100000000017")])],
            [Tagged("Task", "900000100000000018"), Tagged("Vm", "18")],
            2**40 + 4,
        )
        assert [row["native"] for row in await homes.rows("xenopsd")] == ["17", "18"]
        destroy = aliases.inward(call("Task.destroy", debug_info="d", id="900000100000000017"), present)
        assert destroy.arguments == {"debug_info": "d", "id": "17"}
        assert await aliases.outward(destroy, None, present) is None
        assert [row["native"] for row in await homes.rows("xenopsd")] == ["18"]


async def test_after_a_move_nothing_of_before_is_known(tmp_path: Path) -> None:
    """A task is nobody's, a cursor begins anew, and a bus caller's natives are no longer natives."""
    with opened(tmp_path) as homes:
        aliases = Aliases(XENOPSD, homes)
        await homes.settle("xenopsd", Side.BUS, "a")
        now = await homes.settle("xenopsd", Side.LEGACY, "b")

        def stat(task: str, door: Door) -> Any:
            return aliases.inward(call("Task.stat", door, debug_info="d", id=task), now).arguments["id"]

        def get(last: int, door: Door) -> Any:
            return aliases.inward(call("UPDATES.get", door, debug_info="d", last_id=last), now).arguments

        assert stat("900000100000000017", Door.HTTP) == "900000100000000017"
        assert stat("17", Door.BUS) == "800000000000000017"
        assert stat("17", Door.HTTP) == "17"
        assert get(2**40 + 3, Door.HTTP) == {"debug_info": "d"}
        assert get(3, Door.BUS) == {"debug_info": "d"}
        assert get(3, Door.HTTP) == {"debug_info": "d", "last_id": 3}
        now = await homes.settle("xenopsd", Side.LEGACY, "c", fresh=True)
        assert stat("17", Door.HTTP) == "800000000000000017"


class Process:
    """A daemon that numbers its tasks from 0, and how they are asked for."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.tasks: list[str] = []

    def begin(self) -> str:
        self.tasks.append(f"{self.name} {len(self.tasks)}")
        return str(len(self.tasks) - 1)

    def find(self, number: str) -> str | None:
        return dict(enumerate(self.tasks)).get(int(number)) if number.isdecimal() else None


@pytest.mark.parametrize("seed", range(5))
async def test_a_handle_never_names_another_object(tmp_path: Path, seed: int) -> None:
    """Through any number of moves and restarts, at either door: a task is its own or is not there."""
    dice = random.Random(seed)
    found = missed = 0
    with opened(tmp_path) as homes:
        aliases = Aliases(XENOPSD, homes)
        process = Process("first")
        held = [(process.begin(), process.tasks[-1], Door.HTTP)]  # from before the bridge
        home = await homes.settle("xenopsd", Side.LEGACY, process.name)
        for number in range(60):
            if dice.random() < 0.1:
                process = Process(f"process {number}")
                side = dice.choice([Side.LEGACY, Side.BUS])
                home = await homes.settle("xenopsd", side, process.name, fresh=side is Side.LEGACY)
            native = process.begin()
            started = call("VM.start", debug_info="d", id="vm", paused=False)
            shown = str(await aliases.outward(started, native, home))
            held.append((shown, process.tasks[-1], dice.choice([Door.HTTP, Door.BUS])))
            if home.side is Side.BUS:  # its own callers ask it without us, and may come to us later
                held.append((native, process.tasks[-1], Door.BUS))
            for shown, task, door in held:
                if door is Door.BUS and home.side is Side.BUS:
                    continue
                sent = aliases.inward(call("Task.stat", door, debug_info="d", id=shown), home)
                reached = process.find(str(sent.arguments["id"]))
                assert reached in (task, None)
                found += reached is not None
                missed += reached is None
    assert found > 60 < missed


async def test_sessions_in_neutral_values(tmp_path: Path) -> None:
    """A login gives a reference that the daemon never saw, the same one for the same session; a logout ends it."""
    native = reference()
    with opened(tmp_path) as homes:
        aliases = Aliases(XAPI, homes)
        present = await homes.settle("xapi", Side.LEGACY, "a")
        login = call("session.login_with_password", uname="root", pwd="p")
        alias = str(await aliases.outward(login, native, present))
        assert (len(alias), alias[:10], alias == native) == (len(native), "OpaqueRef:", False)
        assert await aliases.outward(call("session.get_by_uuid", session_id=native, uuid="u"), native, present) == alias
        assert await aliases.outward(call("session.get_parent", self=native), "OpaqueRef:NULL", present) == (
            "OpaqueRef:NULL"
        )
        logout = aliases.inward(call("session.logout", session_id=alias), present)
        assert logout.arguments == {"session_id": native}
        stranger = call("session.logout", session_id=reference())
        assert aliases.inward(stranger, present) == stranger
        await aliases.outward(stranger, None, present)
        assert homes.has_handles("xapi")
        await aliases.outward(logout, None, present)
        assert await homes.rows("xapi") == []
        assert not homes.has_handles("xapi")


def xml(*params: str, method: str = "VM.get_record") -> bytes:
    values = "".join(f"<param><value><string>{param}</string></value></param>" for param in params)
    return f"<methodCall><methodName>{method}</methodName><params>{values}</params></methodCall>".encode()


def xml_reply(inside: str) -> bytes:
    return f"<struct><member><name>Status</name><value>Success</value></member>{inside}</struct>".encode()


REPLIES = {
    "xml": xml_reply("<member><name>Value</name><value>REF</value></member>"),
    "xml with types": xml_reply("<member><name>Value</name><value><string>REF</string></value></member>"),
    "json 1": b'{"result":{"Status":"Success","Value":"REF"},"error":null,"id":0}',
    "json 2": b'{"jsonrpc": "2.0", "result" : "REF", "id": 3}',
}
REFUSALS = {
    "xml": b"<struct><member><name>Status</name><value>Failure</value></member><member><name>ErrorDescription</name>"
    b"<value><array><data><value>X</value><value>REF</value></data></array></value></member></struct>",
    "json 1": b'{"result":{"Status":"Failure","ErrorDescription":["X","REF"]},"error":null,"id":0}',
    "json 2": b'{"jsonrpc":"2.0","error":{"code":1,"message":"X","data":["REF"]},"id":3}',
    "fault": b"<methodResponse><fault><value>REF</value></fault></methodResponse>",
}


@pytest.mark.parametrize("form", REPLIES)
async def test_sessions_in_bytes(tmp_path: Path, form: str) -> None:
    """In a login's reply, in every call that follows, and no longer after the logout; all else is as it came."""
    native = reference()
    login, look, logout = map(method_of, ("session.login_with_password", "VM.get_record", "session.logout"))
    with opened(tmp_path) as homes:
        aliases = Aliases(XAPI, homes)
        present = await homes.settle("xapi", Side.LEGACY, "a")
        body = xml(native, reference())
        assert aliases.text_inward(look, body, present) is body
        came = REPLIES[form].replace(b"REF", native.encode())
        reply = await aliases.text_outward(login, xml("root", "p"), came, present)
        (row,) = await homes.rows("xapi")
        alias = homes.alias_of("xapi", "session", native, present)
        assert alias is not None
        assert row["alias"] == f"{alias[:18]}..."
        assert reply == REPLIES[form].replace(b"REF", alias.encode())
        stranger = reference()
        sent = aliases.text_inward(look, xml(alias, stranger), present)
        assert sent == xml(native, stranger)
        assert await aliases.text_outward(look, sent, came, present) == came
        for refusal in (template.replace(b"REF", native.encode()) for template in REFUSALS.values()):
            assert await aliases.text_outward(logout, xml(native), refusal, present) == refusal
            assert await aliases.text_outward(login, b"", refusal, present) == refusal
        assert homes.alias_of("xapi", "session", native, present) == alias
        success = REPLIES[form].replace(b"REF", b"")
        assert await aliases.text_outward(logout, xml(native), success, present) == success
        assert await homes.rows("xapi") == []


async def test_sessions_in_the_head_of_a_stream(tmp_path: Path) -> None:
    """A target names them, with or without escapes, and so do cookies; other uuids stay."""
    (session,) = sessions(1)
    form = "PUT /import?session_id={}&task_id={} HTTP/1.1\r\nCookie: session_id={}\r\n\r\n"

    def head(ref: str) -> bytes:
        return form.format(ref.replace(":", "%3A"), "OpaqueRef:12345678-1234-1234-1234-123456789abc", ref).encode()

    with opened(tmp_path) as homes:
        present = await homes.settle("xapi", Side.LEGACY, "a")
        await homes.add("xapi", present, [session])
        assert Aliases(XAPI, homes).head_inward(head(session.alias)) == head(session.native)
        assert Aliases(XENOPSD, homes).head_inward(head(session.alias)) == head(session.alias)


def batch(token: str) -> bytes:
    event = "<member><name>token</name><value>00000000000000000001,00000000000000000002</value></member>"
    events = f"<member><name>events</name><value>{event * 100}</value></member>"
    return xml_reply(f"{events}<member><name>token</name><value>{token}</value></member>")


async def test_tokens_in_bytes(tmp_path: Path) -> None:
    """The home is in them, a call with those of another home must be translated, and other looks pass."""
    events, inject = method_of("event.from"), method_of("event.inject")
    native, alias = f"00000000000000001234,{ZEROS}", f"00000200000000001234,{ZEROS}"
    with opened(tmp_path) as homes:
        aliases = Aliases(XAPI, homes)
        await homes.settle("xapi", Side.LEGACY, "a")
        now = await homes.settle("xapi", Side.LEGACY, "b")
        assert await aliases.text_outward(events, b"", batch(native), now) == batch(alias)
        older = batch("12,1336998963.25").replace(b"<name>token</name><value>0", b"<name>key</name><value>0")
        assert await aliases.text_outward(events, b"", older, now) == older
        as_json = b'{"result":{"token":"%s","valid_ref_counts":{},"events":[' + b'"a",' * 1000 + b"1]}}"
        reply = await aliases.text_outward(events, b"", as_json % native.encode(), now)
        assert reply == as_json % alias.encode()
        injected = REPLIES["xml"].replace(b"REF", native.encode())
        assert await aliases.text_outward(inject, b"", injected, now) == REPLIES["xml"].replace(b"REF", alias.encode())
        for token, sent in {alias: native, native: native, "": "", "12,1.5": "12,1.5"}.items():
            assert aliases.text_inward(events, xml("s", "vm", token), now) == xml("s", "vm", sent)
        assert aliases.text_inward(events, xml("s", "vm", alias.replace("2", "1", 1)), now) is None
        fresh = await homes.settle("xapi", Side.LEGACY, "c", fresh=True)
        assert aliases.text_inward(events, xml("s", "vm", native), fresh) is None
        asked = call("event.from", session_id="s", classes=["vm"], token=alias, timeout=1.0)
        assert aliases.inward(asked, fresh).arguments["token"] == ""
        value: Any = await aliases.outward(asked, {"events": [], "token": native}, fresh)
        assert value == {"events": [], "token": f"00000300000000001234,{ZEROS}"}


async def test_services_without_such_handles(tmp_path: Path) -> None:
    """Nothing is touched: what squeezed gives out is in the store, for whoever comes next."""
    squeezed = model.load("squeezed")
    method = squeezed.method("reserve_memory")
    assert method is not None
    with opened(tmp_path) as homes:
        aliases = Aliases(squeezed, homes)
        home = Home(1, Side.LEGACY)
        asked = Call(method, {"session_id": "xenopsd"}, Door.XENSTORE, None)
        assert aliases.plan(method) is NOTHING
        assert aliases.inward(asked, home) is asked
        assert await aliases.outward(asked, "id", home) == "id"
        assert await homes.rows("squeezed") == []


async def test_a_handle_that_cannot_be_kept_is_not_shown(tmp_path: Path) -> None:
    """The caller gets no alias that a restart would forget; one that ended may stay written down."""
    with opened(tmp_path) as homes:
        aliases = Aliases(XAPI, homes)
        present = await homes.settle("xapi", Side.LEGACY, "a")
        login = call("session.login_with_password", uname="root", pwd="p")
        native = reference()
        alias = await aliases.outward(login, native, present)
    with pytest.raises(NotDurable):
        await aliases.outward(login, reference(), present)
    logout = aliases.inward(call("session.logout", session_id=alias), present)
    assert await aliases.outward(logout, None, present) is None
    assert homes.native_of("xapi", "session", str(alias)) is None
    with pytest.raises(NotDurable):
        await homes.settle("xapi", Side.BUS, "b")
    assert homes.home("xapi") == present


async def test_many_at_once(tmp_path: Path) -> None:
    """Every handle is kept once, whoever gives it first, and all are there after a restart."""
    with opened(tmp_path) as homes:
        aliases = Aliases(XENOPSD, homes)
        present = await homes.settle("xenopsd", Side.LEGACY, "a")
        starts = [call("VM.start", debug_info="d", id=str(number), paused=False) for number in range(200)]
        await asyncio.gather(*(aliases.outward(start, str(n // 2), present) for n, start in enumerate(starts)))
        tasks: Any = [{"id": str(number)} for number in range(250)]
        listed: Any = await aliases.outward(call("Task.list", debug_info="d"), tasks, present)
        assert [task["id"] for task in listed] == [f"9000001{number:011}" for number in range(250)]
    with opened(tmp_path) as homes:
        assert sorted(int(row["native"]) for row in await homes.rows("xenopsd")) == [*range(250)]
