"""Which process stands behind each service's authority, and the handles that callers were given in its name.

An alias is in the ledger before the reply leaves that shows it first. Cursors are not kept: their aliases say all that
there is to know. In memory are the handles of the present homes only; those of homes that are over have become names
that nobody knows, and stay in the file for an operator to see.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final

from bridges import handles
from bridges.calls import Call, Door, Side, Value
from bridges.durable import Durable, NotDurable
from bridges.handles import HOMES, NOTHING, Handle, Home, Place, Plan
from bridges.interfaces.model import HandleForm, Method, Service

LOG: Final = logging.getLogger("bridges.ledger")

KEPT_OF_THE_PAST: Final = 10_000  # handles of a service whose homes are over: the newest
KEPT_OF_THE_PRESENT: Final = 100_000  # handles of a service's present home: those that were used last
_MARGIN: Final = 1000  # so many more before the surplus goes, so that it goes in one statement

SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS home (
    service TEXT NOT NULL, number INTEGER NOT NULL, side TEXT NOT NULL, incarnation TEXT NOT NULL,
    fresh INTEGER NOT NULL, since TEXT NOT NULL, PRIMARY KEY (service, number)
) STRICT;
CREATE TABLE IF NOT EXISTS handle (
    service TEXT NOT NULL, kind TEXT NOT NULL, alias TEXT NOT NULL, home INTEGER NOT NULL, native TEXT NOT NULL,
    issued TEXT NOT NULL, PRIMARY KEY (service, kind, alias)
) STRICT;
"""
_FORGET_THE_PAST: Final = """
DELETE FROM handle WHERE service = ?1 AND home <> ?2 AND rowid NOT IN
    (SELECT rowid FROM handle WHERE service = ?1 AND home <> ?2 ORDER BY rowid DESC LIMIT ?3)
"""
# The newest of each side stays: whether the service was ever on the bus is asked for ever.
_FORGET_HOMES: Final = """
DELETE FROM home WHERE service = ?1 AND rowid NOT IN (SELECT max(rowid) FROM home WHERE service = ?1 GROUP BY side)
    AND number NOT IN (SELECT home FROM handle WHERE service = ?1)
"""
_FORGET: Final = "DELETE FROM handle WHERE service = ? AND home = ? AND alias IN (SELECT value FROM json_each(?))"


@dataclass(slots=True)
class _Present:
    """A service's present home. `natives` by kind and alias, the one used last at the end; `aliases` the reverse."""

    home: Home
    incarnation: str
    natives: dict[tuple[str, str], str] = field(default_factory=dict)
    aliases: dict[tuple[str, str], str] = field(default_factory=dict)

    def keep(self, handle: Handle) -> None:
        self.natives[handle.kind, handle.alias] = handle.native
        self.aliases[handle.kind, handle.native] = handle.alias

    def forget(self, kind: str, alias: str) -> None:
        native = self.natives.pop((kind, alias), None)
        if native is not None and self.aliases.get((kind, native)) == alias:
            del self.aliases[kind, native]


class Ledger:
    """The homes and handles of all services, in a file with SCHEMA. `now` gives the time as UTC ISO text."""

    def __init__(self, durable: Durable, now: Callable[[], str]) -> None:
        self._durable = durable
        self._now = now
        self._present: dict[str, _Present] = {}
        self._were_on_bus: set[str] = set()
        rows = durable.read_now("SELECT service, number, side, incarnation, fresh FROM home ORDER BY rowid")
        for service, number, side, incarnation, fresh in rows:
            self._present[service] = _Present(Home(number, Side(side), bool(fresh)), incarnation)
            if side == Side.BUS:
                self._were_on_bus.add(service)
        for service, present in self._present.items():
            for row in durable.read_now(
                "SELECT kind, alias, native FROM handle WHERE service = ? AND home = ? ORDER BY rowid",
                (service, present.home.number),
            ):
                present.keep(Handle(*row))

    async def settle(self, service: str, side: Side, incarnation: str, *, fresh: bool = False) -> Home:
        """The present home: a new one when side or incarnation differ from the last. Raises NotDurable.

        `incarnation` names the process that rules: no other one ever has the same, on this host and over its restarts.
        `fresh`: it was started behind the bridge's doors. It is no longer fresh once it was settled without saying so:
        callers may have reached it directly in between.
        """
        present = self._present.get(service)
        if present is not None and (present.home.side, present.incarnation) == (side, incarnation):
            if present.home.fresh and not fresh:
                await self._durable.write(
                    "UPDATE home SET fresh = 0 WHERE service = ? AND number = ?", (service, present.home.number)
                )
                present.home = present.home._replace(fresh=False)
            return present.home
        number = present.home.number % HOMES + 1 if present is not None else 1
        # A number that comes again after all others has nothing to do with its home of then.
        await self._durable.write("DELETE FROM handle WHERE service = ? AND home = ?", (service, number))
        await self._durable.write(
            "INSERT OR REPLACE INTO home (service, number, side, incarnation, fresh, since) VALUES (?,?,?,?,?,?)",
            (service, number, side, incarnation, fresh, self._now()),
        )
        if side is Side.BUS:
            self._were_on_bus.add(service)
        home = Home(number, side, fresh)
        self._present[service] = _Present(home, incarnation)
        await self._durable.write(_FORGET_THE_PAST, (service, number, KEPT_OF_THE_PAST))
        await self._durable.write(_FORGET_HOMES, (service,))
        return home

    def home(self, service: str) -> Home | None:
        """The present home, None for a service that was never settled."""
        present = self._present.get(service)
        return None if present is None else present.home

    def was_on_bus(self, service: str) -> bool:
        """Whether any home of the service ever was on the bus."""
        return service in self._were_on_bus

    def alias_of(self, service: str, kind: str, native: str, home: Home) -> str | None:
        """How callers know a handle of the present home; None when no caller was told of it, or the home is over."""
        present = self._present.get(service)
        if present is None or present.home.number != home.number:
            return None
        return present.aliases.get((kind, native))

    def native_of(self, service: str, kind: str, alias: str) -> str | None:
        """What the present home calls a handle; None when it is no alias of this home."""
        present = self._present.get(service)
        native = None if present is None else present.natives.get((kind, alias))
        if present is not None and native is not None:
            present.natives[kind, alias] = present.natives.pop((kind, alias))
        return native

    def has_handles(self, service: str) -> bool:
        """Whether callers know any handle of the present home."""
        present = self._present.get(service)
        return present is not None and bool(present.natives)

    async def add(self, service: str, home: Home, new: Iterable[Handle]) -> None:
        """Keeps handles of a home, new aliases for each. They are durable when it returns. Raises NotDurable."""
        kept = tuple(new)
        issued = self._now()
        statement = "INSERT OR IGNORE INTO handle (service, kind, alias, home, native, issued) VALUES (?,?,?,?,?,?)"
        await asyncio.gather(
            *(
                self._durable.write(statement, (service, each.kind, each.alias, home.number, each.native, issued))
                for each in kept
            )
        )
        present = self._present.get(service)
        if present is None or present.home.number != home.number:
            return
        for each in kept:
            present.keep(each)
        if len(present.natives) >= KEPT_OF_THE_PRESENT + _MARGIN:
            await self._forget_surplus(service, present)

    async def drop(self, service: str, kind: str, alias: str) -> None:
        """Forgets a handle that is no more. Raises NotDurable: it is then found again at the next start."""
        if (present := self._present.get(service)) is not None:
            present.forget(kind, alias)
        await self._durable.write(
            "DELETE FROM handle WHERE service = ? AND kind = ? AND alias = ?", (service, kind, alias)
        )

    async def rows(self, service: str) -> list[dict[str, Any]]:
        """Every kept handle, oldest first, JSON-ready: kind, alias, native, home, side, issued, state.

        References are shown in part. `side` is None for a home that is no longer known; `state` is "live" for the
        present home, else "fenced".
        """
        present = self.home(service)
        found = await self._durable.read(
            "SELECT kind, alias, native, home, side, issued FROM handle LEFT JOIN home "
            "ON home.service = handle.service AND home.number = handle.home "
            "WHERE handle.service = ? ORDER BY handle.rowid",
            (service,),
        )
        return [
            {
                "kind": kind,
                "alias": handles.masked(alias),
                "native": handles.masked(native),
                "home": number,
                "side": side,
                "issued": issued,
                "state": "live" if present is not None and number == present.number else "fenced",
            }
            for kind, alias, native, number, side, issued in found
        ]

    async def _forget_surplus(self, service: str, present: _Present) -> None:
        surplus = [*present.natives][: len(present.natives) - KEPT_OF_THE_PRESENT]
        for kind, alias in surplus:
            present.forget(kind, alias)
        gone = json.dumps([alias for _, alias in surplus])
        await self._durable.write(_FORGET, (service, present.home.number, gone))


class Aliases:
    """Exchanges the handles of one service's calls: inward on the way to its home, outward on the way back.

    Both take the home that was the present one when the call was handed over: an answer that comes late belongs to the
    process that was asked, not to its successor.
    """

    def __init__(self, service: Service, ledger: Ledger) -> None:
        self._service = service
        self._name = service.name
        self._ledger = ledger
        self._plans: dict[Method, Plan] = {}
        forms = {form: kind for kind, form in service.handles.items()}
        self._references = forms.get(HandleForm.REFERENCE, "")  # the one kind of that form

    @property
    def home(self) -> Home | None:
        """The present home of the service's handles."""
        return self._ledger.home(self._name)

    def plan(self, method: Method) -> Plan:
        """What is to be done with a method's handles; NOTHING for all methods of most services."""
        if not self._service.handles:
            return NOTHING
        plan = self._plans.get(method)
        if plan is None:
            plan = self._plans[method] = handles.plan_of(self._service, method)
        return plan

    def inward(self, call: Call, home: Home) -> Call:
        """The call as the home understands it."""
        plan = self.plan(call.method)
        if not plan.consumes:
            return call
        natives = self._accepts_natives(home, from_bus=call.door is Door.BUS)
        arguments: Value = call.arguments
        for place in plan.consumes:
            arguments = place.exchange(arguments, partial(self._native, place, home, natives))
        assert isinstance(arguments, dict)
        return replace(call, arguments=arguments)

    async def outward(self, sent: Call, value: Value, home: Home) -> Value:
        """The result of a call that succeeded as its caller may see it; `sent` is what `inward` gave.

        Raises NotDurable: the call was executed, but the handle that it gave could not be kept.
        """
        plan = self.plan(sent.method)
        new: dict[tuple[str, str], Handle] = {}
        for place in plan.produces:
            value = place.exchange(value, partial(self._alias, place, home, new))
        if new:
            await self._ledger.add(self._name, home, new.values())
        for place in plan.ends:
            for native in place.found_in(sent.arguments):
                await self._end(place.kind, str(native), home)
        return value

    def text_inward(self, method: Method | None, body: bytes, home: Home) -> bytes | None:
        """The body of a legacy caller's call as its home understands it; None when it must be translated for that.

        It must when it bears numbers, or a cursor that is not the home's own. A method that is not written down (None)
        may take any reference.
        """
        plan = NOTHING if method is None else self.plan(method)
        if plan.has_numbers:
            return None
        takes_references = plan.takes_references or (method is None and self._references)
        if takes_references and self._ledger.has_handles(self._name):
            body = handles.REFERENCE_BYTES.sub(self._native_in_text, body)
        if not plan.takes_tokens:
            return body
        natives = self._accepts_natives(home, from_bus=False)

        def own(match: re.Match[bytes]) -> bytes:
            return str(handles.inward(HandleForm.TOKEN, match[0].decode(), home, natives=natives)).encode()

        changed = handles.TOKEN_BYTES.sub(own, body)
        return changed if len(changed) == len(body) else None

    async def text_outward(self, method: Method, sent: bytes, reply: bytes, home: Home) -> bytes:
        """The body of a reply, failures too, as the caller may see it; `sent` is what `text_inward` gave.

        Raises NotDurable: the call was executed, but the handle that it gave could not be kept.
        """
        plan = self.plan(method)
        for place in plan.produces:
            found = place.in_reply(reply)
            if found is None:
                continue
            new: dict[tuple[str, str], Handle] = {}
            alias = self._alias(place, home, new, found["handle"].decode())
            if new:
                await self._ledger.add(self._name, home, new.values())
            reply = b"".join((reply[: found.start("handle")], str(alias).encode(), reply[found.end("handle") :]))
        if plan.ends and handles.FAILURE_BYTES.search(reply) is None:
            for native in handles.REFERENCE_BYTES.findall(sent):
                await self._end(self._references, native.decode(), home)
        return reply

    def head_inward(self, head: bytes) -> bytes:
        """The head of a request that is no call: a stream's target or a cookie may name a session."""
        return handles.UUID_BYTES.sub(self._native_in_head, head) if self._references else head

    def _accepts_natives(self, home: Home, *, from_bus: bool) -> bool:
        return handles.accepts_natives(home, was_on_bus=self._ledger.was_on_bus(self._name), from_bus=from_bus)

    def _native(self, place: Place, home: Home, natives: bool, handle: Value) -> Value:  # noqa: FBT001 -- for partial
        if place.form is not HandleForm.REFERENCE:
            return handles.inward(place.form, handle, home, natives=natives)
        return self._ledger.native_of(self._name, place.kind, str(handle)) or handle

    def _native_in_text(self, match: re.Match[bytes]) -> bytes:
        native = self._ledger.native_of(self._name, self._references, match[0].decode())
        return match[0] if native is None else native.encode()

    def _native_in_head(self, match: re.Match[bytes]) -> bytes:
        native = self._ledger.native_of(self._name, self._references, f"{handles.REFERENCE}{match[0].decode()}")
        return match[0] if native is None else native.removeprefix(handles.REFERENCE).encode()

    def _alias(self, place: Place, home: Home, new: dict[tuple[str, str], Handle], native: Value) -> Value:
        """The alias of a native; what is to be kept of it goes into `new`."""
        if place.form in handles.CURSORS:
            return handles.outward(place.form, native, home)
        text = str(native)
        known = self._ledger.alias_of(self._name, place.kind, text, home) or new.get((place.kind, text))
        if known is not None:
            return known.alias if isinstance(known, Handle) else known
        if place.form is HandleForm.REFERENCE:
            alias = f"{handles.REFERENCE}{uuid.uuid4()}" if handles.is_reference(text) else text
        else:
            alias = str(handles.outward(place.form, text, home))
        if alias != text:
            new[place.kind, text] = Handle(place.kind, alias, text)
        return alias

    async def _end(self, kind: str, native: str, home: Home) -> None:
        alias = self._ledger.alias_of(self._name, kind, native, home)
        if alias is None:
            return
        try:
            await self._ledger.drop(self._name, kind, alias)
        except NotDurable as error:
            LOG.warning("%s: an ended %s stays in the ledger: %s", self._name, kind, error)
