"""What bus callers and a service's bus daemon say to each other once it is in charge, for the capture.

Until then such calls come in at a door of ours. From then on they pass us by, so while the service is under capture a
connection of its own asks the bus for copies. What we say ourselves is left out: it is recorded where it is said.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Final

from bridges.calls import Door
from bridges.capture.messages import BusAnswer, BusCall, BusFailure, Late, Nothing
from bridges.capture.taps import Tap, Trail
from bridges.dbus_translation import MethodForm, Translation
from dbus_side import frames, names, wire
from dbus_side.bus import Bus
from dbus_side.errors import BusError, BusRefused

LOG: Final = logging.getLogger("bridges.overhearing")

PAUSE_SECONDS: Final = 0.5
START_SECONDS: Final = 5.0
UNANSWERED: Final = 16384  # calls whose answer is waited for; of more the oldest are let go
# Why nobody knows what was said.
NOT_WATCHED: Final = "the bus was not watched yet"
CONNECTION_LOST: Final = "the connection that watched the bus was lost"

_DRIVER: Final = "org.freedesktop.DBus"


class Overhearing:
    """One service. `own_name` gives the unique name under which we ask the daemon ourselves, empty for none."""

    def __init__(self, on_bus: Translation, address: str, tap: Tap, own_name: Callable[[], str]) -> None:
        self._on_bus = on_bus
        self._address = address
        self._tap = tap
        self._own_name = own_name
        self._service = on_bus.service.name
        self._task: asyncio.Task[None] | None = None
        self._hears = asyncio.Event()
        self._missed = ""
        self._owner = ""  # of the name, once it was told; else it is the daemon, or we would not listen
        self._unanswered: OrderedDict[tuple[str, int], tuple[Trail, MethodForm]] = OrderedDict()

    def arrange(self, tasks: asyncio.TaskGroup, *, wanted: bool, missed: str = "") -> None:
        """Listens from now on, or no longer; `missed` says why calls may have passed unseen before."""
        if wanted and self._task is None:
            self._missed = missed
            self._task = tasks.create_task(self._listen(), name=f"overhearing {self._service}")
        elif not wanted and self._task is not None:
            self._task.cancel()
            self._task = None

    async def until_heard(self) -> bool:
        """Waits a little until what is said is heard; whether it is, or nobody has to listen any more."""
        if self._task is None or self._hears.is_set():
            return True
        hears = asyncio.create_task(self._hears.wait(), name=f"{self._service} is overheard")
        await asyncio.wait((hears, self._task), timeout=START_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        hears.cancel()
        return self._task is None or self._hears.is_set()

    async def stop(self) -> None:
        """Listens no longer."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def _listen(self) -> None:
        told = ""
        while True:
            try:
                await self._listen_once()
                self._missed = told = CONNECTION_LOST
            except (BusError, OSError) as error:
                self._missed = self._missed or NOT_WATCHED
                if told != str(error):
                    told = str(error)
                    LOG.error("%s: its calls on the bus cannot be captured: %s", self._service, error)
            await asyncio.sleep(PAUSE_SECONDS)

    async def _listen_once(self) -> None:
        """Returns when the connection is lost. Raises BusError, OSError."""
        bus = await Bus.connect(self._address)
        self._owner = ""
        try:
            await bus.monitor(_rules(self._service), self._note)
            if self._missed:
                self._tap.missed(self._missed)
            self._hears.set()
            await bus.wait_lost()
        finally:
            self._hears.clear()
            self._unanswered.clear()
            await bus.close()

    def _note(self, frame: bytes) -> None:
        try:
            head = wire.read_head(frame)
        except wire.MessageUnreadable:
            return  # what the bus lets pass has a head: it is none of the service
        if head.kind == frames.METHOD_CALL:
            self._note_call(head, frame)
        elif head.kind == frames.SIGNAL:
            self._note_owner(head, frame)
        elif (known := self._unanswered.pop((head.destination, head.reply_serial), None)) is not None:
            trail, form = known
            trail.left(Late(partial(_answer, form, head, frame), len(frame)))

    def _note_owner(self, head: wire.Head, frame: bytes) -> None:
        """On the way back the name is ours before the move is over: calls come to our own door from then on."""
        if head.member == "NameOwnerChanged":
            self._owner = str(wire.read_body(frame)[1][2])

    def _note_call(self, head: wire.Head, frame: bytes) -> None:
        method, ours = self._on_bus.find(head.path, head.interface, head.member), self._own_name()
        if method is None or (ours and ours in (head.sender, self._owner)):
            return
        form = self._on_bus.of(method)
        call = Late(partial(_call, form, head, frame), len(frame))
        trail = self._tap.came(Door.BUS, call, method, peer=head.sender, conn=head.sender)
        if trail is None:
            return
        if not head.reply_expected:
            trail.left(Nothing())
            return
        self._unanswered[head.sender, head.serial] = trail, form
        if len(self._unanswered) > UNANSWERED:
            self._unanswered.popitem(last=False)


def _call(form: MethodForm, head: wire.Head, frame: bytes) -> BusCall:
    return BusCall(form, head.destination, head.sender, head.serial, _body(frame)[1])


def _answer(form: MethodForm, head: wire.Head, frame: bytes) -> BusAnswer | BusFailure:
    signature, body = _body(frame)
    if head.kind == frames.ERROR:
        return BusFailure(form, BusRefused(head.error_name, signature, body))
    return BusAnswer(form, signature, body)


def _body(frame: bytes) -> tuple[str, tuple[object, ...]]:
    """One that cannot be read is empty, which is not of its signature: the record says so."""
    try:
        return wire.read_body(frame)
    except wire.MessageUnreadable:
        return "", ()


def _rules(service: str) -> tuple[str, ...]:
    """Calls to whoever owns the name, under whatever name; what a daemon answers that may have lost it meanwhile, and
    what the bus answers in its place; and who owns it."""
    name, candidate = names.service_name(service), names.candidate_name(service)
    return (
        f"type='method_call',destination='{name}'",
        *(f"type='{kind}',sender='{each}'" for kind in ("method_return", "error") for each in (name, candidate)),
        f"type='error',sender='{_DRIVER}'",
        f"type='signal',sender='{_DRIVER}',member='NameOwnerChanged',arg0='{name}'",
    )
