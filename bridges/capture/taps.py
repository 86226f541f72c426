"""Where doors and legs hand over what they saw, while their service is under capture; while not, it costs one look.

A tap belongs to a service, a trail to one call of it. Nothing is decoded or copied here, and nothing here waits: what
is handed over stands in a bounded queue, and what does not fit is counted.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Final, NamedTuple

from bridges.calls import Door, Side
from bridges.capture.describing import Heard, Seen
from bridges.capture.messages import Message, Said
from bridges.capture.records import Leg
from bridges.cutover import MEANINGS, Stage
from bridges.faults import Fault
from bridges.interfaces.model import Effect, Method
from xmlrpc_gateway.http_messages import Peer

_ids: Final = itertools.count(1)


class Entered(NamedTuple):
    """The service stands in another stage from here on, or is under capture from here on (both are the same then)."""

    origin: str
    target: str
    epoch: int
    ts: int
    mono: int


class Missed(NamedTuple):
    """Calls may have passed that nobody saw, nobody can know how many."""

    why: str
    ts: int
    mono: int


Event = Seen | Heard | Entered | Missed


class Clock(NamedTuple):
    """Nanoseconds: since 1970, and since the boot."""

    real: Callable[[], int]
    mono: Callable[[], int]


class Tap:
    """One service's way into the running capture.

    `is_on` is all that a call asks while nothing is captured. `offer` takes an event and about how many bytes it holds.
    """

    def __init__(self, service: str, clock: Clock, offer: Callable[[str, Event, int], None]) -> None:
        self.is_on = False
        self._service = service
        self._clock = clock
        self._offer = offer
        self._stage = Stage.OFF
        self._epoch = 0

    def enter(self, stage: Stage, epoch: int) -> None:
        """The service stands there from now on."""
        origin, self._stage, self._epoch = self._stage, stage, epoch
        if self.is_on:
            self._tell_stage(origin)

    def open(self) -> None:
        """Under capture from now on."""
        self.is_on = True
        self._tell_stage(self._stage)

    def close(self) -> None:
        """What is under way is not noted any more."""
        self.is_on = False

    def _tell_stage(self, origin: Stage) -> None:
        entered = Entered(str(origin), str(self._stage), self._epoch, self._clock.real(), self._clock.mono())
        self._offer(self._service, entered, 0)

    def missed(self, why: str) -> None:
        """Until now calls may have passed unseen."""
        if self.is_on:
            self._offer(self._service, Missed(why, self._clock.real(), self._clock.mono()), 0)

    def came(
        self,
        door: Door,
        message: Message,
        method: Method | None,
        *,
        peer: Peer | str | None = None,
        conn: str = "",
        leg: Leg = Leg.CALLER,
    ) -> Trail | None:
        """A call stands at a door; None while nothing is captured."""
        if not self.is_on:
            return None
        trail = Trail(self, str(next(_ids)), method)
        trail.seen(leg, door, message, peer=peer, conn=conn, side=MEANINGS[self._stage].authority)
        return trail

    def note_seen(self, call: str, leg: Leg, door: Door, message: Message, where: _Where) -> None:
        """For trails."""
        if self.is_on:
            effect = Effect.WRITE if where.method is None else where.method.effect
            seen = Seen(
                call=call,
                leg=leg,
                door=door,
                message=message,
                ts=self._clock.real(),
                mono=self._clock.mono(),
                side=str(where.side),
                stage=str(self._stage),
                epoch=self._epoch,
                conn=where.conn,
                peer=where.peer,
                method=where.method,
                effect=str(effect),
            )
            self._offer(self._service, seen, message.size)

    def note_heard(self, call: str, leg: Leg, message: Message, side: Side) -> None:
        """For trails."""
        if self.is_on:
            heard = Heard(call, leg, message, self._clock.real(), self._clock.mono(), str(side), self._epoch)
            self._offer(self._service, heard, message.size)


class _Where(NamedTuple):
    """What a trail knows of a request beside its message."""

    side: Side
    conn: str
    peer: Peer | str | None
    method: Method | None


class Trail:
    """One call on its way: the leg at its door, and those to whoever was asked."""

    __slots__ = ("_call", "_method", "_open", "_tap")

    def __init__(self, tap: Tap, call: str, method: Method | None) -> None:
        self._tap = tap
        self._call = call
        self._method = method
        self._open: dict[Leg, Side] = {}  # the legs whose answer has not come, and who is asked there

    def seen(
        self, leg: Leg, door: Door, message: Message, *, side: Side, peer: Peer | str | None = None, conn: str = ""
    ) -> None:
        """The call as it is in this leg."""
        self._open[leg] = side
        if leg is Leg.BACKEND:
            self._open[Leg.CALLER] = side
        self._tap.note_seen(self._call, leg, door, message, _Where(side, conn, peer, self._method))

    def heard(self, leg: Leg, message: Message) -> None:
        """Its answer in this leg."""
        if (side := self._open.pop(leg, None)) is not None:
            self._tap.note_heard(self._call, leg, message, side)

    def asked(self, side: Side, door: Door, message: Message, *, is_candidate: bool = False) -> None:
        """It is handed on to a daemon at one of its doors."""
        self.seen(Leg.CANDIDATE if is_candidate else Leg.BACKEND, door, message, side=side)

    def answered(self, message: Message, *, is_candidate: bool = False) -> None:
        """What that daemon said."""
        self.heard(Leg.CANDIDATE if is_candidate else Leg.BACKEND, message)

    def failed(self, fault: Fault, *, is_candidate: bool = False) -> None:
        """The daemon was asked and what came of it is a fault of ours; nothing when its answer was noted."""
        self.heard(Leg.CANDIDATE if is_candidate else Leg.BACKEND, Said(fault))

    def left(self, message: Message) -> None:
        """What the caller was given."""
        self.heard(Leg.CALLER, message)
