"""With what handles a recorded call is sent, and how its answer is to be read.

A handle that a replayed answer gave stands for the one that the recorded answer had in the same place, in every later
call that takes it. The places are those of the interface data (`produces`, `consumes`); in a service with references
(xapi) they are found by their look as well, since its records are full of them. Of several handles in one place (a
list, the keys of a map) those that both answers have stand for themselves, the others for each other in their order, if
there are equally many; else for nothing. Which answer counts, when two give the same handle:
    a write gives a new handle: the last one counts
    a read names one that may be known: the first one counts, so that another in its place shows as a difference
    a cursor is a position and no name: the last one counts, and it is never a difference

Not a handle: None, the empty text, `OpaqueRef:NULL`. A name and no handle: what does not look made up (`is_made_up`),
of a kind that is not known to one process alone: squeezed's session is the name under which a service logs in, any is
accepted, and storage's datapaths and mirrors are named by their callers. A name passes as it is, unless an answer gave
another one for it, or the call that gave it when it was recorded has failed now. Everything else must have come from a
replayed answer or from `--bind`.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Final, NamedTuple

import msgspec

from bridges import handles
from bridges.calls import Tagged, Value
from bridges.capture import typed
from bridges.capture.records import Complete
from bridges.capture.rules import UNDECLARED, is_token
from bridges.comparison import SECRET, Outcome
from bridges.faults import Fault
from bridges.handles import Walk
from bridges.interfaces.model import Effect, HandleForm, Method, Parameter, Service, bare
from bridges.replay.pairs import FOR_THE_LOG, Exchange, NotRecorded, answer_of
from bridges.xmlrpc_values import Mismatch

KEPT: Final = 1 << 18  # handles; the ones used least recently are forgotten, and their consumers are unbound
ANY_KIND: Final = "reference"
Key = tuple[str, str, str]  # a service, a kind, a handle
_STEP: Final = re.compile(r"[.[{]")


class Unbound(Exception):
    """A call that cannot be sent: a handle or a value in it is not known here. `why` is short, to be counted by."""

    def __init__(self, why: str, text: str) -> None:
        super().__init__(text)
        self.why = why


class Place(NamedTuple):
    """A place of the interface data, the kind of the handles there, and the way to them."""

    place: str
    kind: str
    walk: Walk


class Places:
    """Where the handles of a service's methods stand, found once a method."""

    def __init__(self) -> None:
        self._known: dict[Method, tuple[tuple[Place, ...], tuple[Place, ...]]] = {}

    def consumed(self, method: Method) -> tuple[Place, ...]:
        return self._of(method)[0]

    def produced(self, method: Method) -> tuple[Place, ...]:
        return self._of(method)[1]

    def taken(self, method: Method, service: Service, arguments: dict[str, Value]) -> Iterator[Key]:
        """The handles in arguments: those of the declared places, and references wherever they stand."""
        for place in self.consumed(method):
            for value in handles.found_by(place.walk, arguments):
                if not is_nothing(value):
                    yield key_of(service, place.kind, value)
        found: list[str] = []
        if has_references(service):
            texts_changed(arguments, partial(_note, found))
        yield from (key_of(service, ANY_KIND, text) for text in found if handles.is_reference(text))

    def given(self, method: Method, service: Service, result: Value) -> Iterator[Key]:
        """The handles in the declared places of a result."""
        for place in self.produced(method):
            for value in handles.found_by(place.walk, result):
                if not is_nothing(value):
                    yield key_of(service, place.kind, value)

    def _of(self, method: Method) -> tuple[tuple[Place, ...], tuple[Place, ...]]:
        if method not in self._known:
            self._known[method] = (
                tuple(Place(at, kind, handles.to_arguments(method, at)) for at, kind in method.consumes.items()),
                tuple(Place(at, kind, handles.to_result(method, at)) for at, kind in method.produces.items()),
            )
        return self._known[method]


def is_nothing(value: Value) -> bool:
    """Whether it stands where a handle would, and names nothing: a cursor from the beginning, no object."""
    return value is None or value in ("", handles.NULL)


class _Table:
    """One handle for another, the ones used last."""

    def __init__(self) -> None:
        self._all: OrderedDict[Key, Value] = OrderedDict()

    def __contains__(self, key: Key) -> bool:
        return key in self._all

    def get(self, key: Key) -> Value:
        found = self._all.get(key)
        if found is not None:
            self._all.move_to_end(key)
        return found

    def put(self, key: Key, value: Value, *, overrides: bool) -> None:
        if overrides or key not in self._all:
            self._all[key] = value
        self._all.move_to_end(key)
        if len(self._all) > KEPT:
            self._all.popitem(last=False)


def key_of(service: Service, kind: str, value: Value) -> Key:
    """A reference is one of its kind, whatever the data call its class."""
    return (service.name, ANY_KIND if handles.is_reference(value) else kind, str(value))


class Bindings:
    """What stands for what in this run.

    `bound` is what `--bind` gave: HANDLE=VALUE, TOKEN=VALUE, METHOD.PARAM=VALUE.
    """

    def __init__(self, bound: Mapping[str, str]) -> None:
        self._bound = dict(bound)
        self._bound_back = {replayed: recorded for recorded, replayed in bound.items()}
        self._replayed = _Table()  # by the recorded one
        self._recorded = _Table()  # by the replayed one
        self._failed = _Table()  # recorded ones that a call should have given
        self._places = Places()

    def arguments(self, exchange: Exchange, method: Method, service: Service) -> dict[str, Value]:
        """What is to be sent for a recorded call. Raises Unbound."""
        request = exchange.request
        if request.arguments is None or request.complete is not Complete.COMPLETE:
            why = request.note or str(request.complete)
            raise Unbound("arguments not recorded", f"its arguments were not recorded: {why}")
        given = {p.name: self._given(method, p) for p in method.parameters if f"{method.name}.{p.name}" in self._bound}
        recorded = {name: value for name, value in request.arguments.items() if name not in given}
        try:
            arguments: Value = typed.read_arguments(method, recorded)
        except Mismatch as mismatch:
            text = f"its arguments do not fit the interface: {mismatch.for_the_log}"
            raise Unbound("arguments that do not fit the interface", text) from None
        for place in self._places.consumed(method):
            arguments = place.walk(arguments, partial(self._consumed, service, place.place, place.kind))
        assert isinstance(arguments, dict)
        declared = {_first(place) for place in method.consumes}
        redacted = {_first(path) for path in request.redacted} - declared - given.keys() - FOR_THE_LOG
        for name in arguments.keys() - declared if has_references(service) else redacted:
            before = arguments.get(name)
            value = texts_changed(before, partial(self._mentioned, service, name))
            if name in redacted:
                value = self._opened(name, value, was_opened=value != before)
            arguments[name] = value
        return arguments | given

    def learn(self, exchange: Exchange, method: Method, service: Service, result: Value) -> None:
        """Takes note of the handles in a replayed result; `back` knows them from then on."""
        try:
            recorded = answer_of(method, exchange.reply)
        except NotRecorded:
            return
        if isinstance(recorded, Fault):
            return
        is_new = method.effect is Effect.WRITE
        for place in self._places.produced(method):
            self._pair(service, place.kind, place.walk, recorded, result, is_new=is_new)
        if has_references(service):
            for one, other in _references(recorded, result, partial(self._stands_for, service, ANY_KIND)):
                self._learn(service, ANY_KIND, one, other, overrides=False)

    def failed(self, exchange: Exchange, method: Method, service: Service) -> None:
        """Takes note of a write that gave nothing now: what it gave when it was recorded is no name."""
        if method.effect is not Effect.WRITE or not method.produces:
            return
        try:
            recorded = answer_of(method, exchange.reply)
        except NotRecorded:
            return
        if not isinstance(recorded, Fault):
            for key in self._places.given(method, service, recorded):
                self._failed.put(key, key[-1], overrides=True)

    def back(self, exchange: Exchange, method: Method, service: Service, outcome: Outcome) -> Outcome:
        """A replayed answer with the recorded handles in place of those that stand for them, for comparing."""
        if isinstance(outcome, Fault):
            named = partial(self._named_back, service, self._sent(exchange, method, service))
            return Fault(outcome.kind, outcome.text, code=outcome.code, argument=texts_changed(outcome.argument, named))
        for place in self._places.produced(method):
            outcome = place.walk(outcome, partial(self._given_back, service, place.kind))
        return texts_changed(outcome, partial(self._named_back, service, {})) if has_references(service) else outcome

    def _given(self, method: Method, parameter: Parameter) -> Value:
        """What `--bind METHOD.PARAM` says: a text or a number as it is, anything else as JSON."""
        text, kind = self._bound[f"{method.name}.{parameter.name}"], bare(parameter.type)
        try:
            return typed.read(kind, text)
        except Mismatch:
            pass
        try:
            return typed.read(kind, msgspec.json.decode(text))
        except (Mismatch, msgspec.MsgspecError, RecursionError):
            why = f"the value bound to {method.name}.{parameter.name} does not fit its type"
            raise Unbound(f"a wrong value for {parameter.name}", why) from None

    def _consumed(self, service: Service, place: str, kind: str, value: Value) -> Value:
        if is_nothing(value):
            return value
        found = self._stands_for(service, kind, value)
        is_known = is_name(service, kind, value) and key_of(service, kind, value) not in self._failed
        if found is None and not is_known:
            text = f"{place}: no replayed answer gave the {kind} {_shown(str(value))}; bind it with --bind"
            raise Unbound(f"unbound {kind}", text)
        return value if found is None else found

    def _mentioned(self, service: Service, name: str, text: str) -> str:
        """A text in an argument that is not declared to be a handle, and may be one by its look."""
        return str(self._consumed(service, name, ANY_KIND, text)) if handles.is_reference(text) else text

    def _stands_for(self, service: Service, kind: str, value: Value) -> Value:
        """What is sent for a recorded handle, None if nobody knows."""
        found = self._replayed.get(key_of(service, kind, value))
        if found is None and (bound := self._bound.get(str(value))) is not None:
            return int(bound) if isinstance(value, int) and bound.isdecimal() else bound
        return found

    def _opened(self, name: str, value: Value, *, was_opened: bool) -> Value:
        """An argument of which something was redacted, with what was bound to it."""
        opened = was_opened

        def bound(text: str) -> str:
            nonlocal opened
            if text in self._bound:
                opened = True
                return self._bound[text]
            if SECRET in text or UNDECLARED in text or is_token(text):
                raise _redacted(name)
            return text

        found = texts_changed(value, bound)
        if not opened:
            raise _redacted(name)
        return found

    def _pair(self, service: Service, kind: str, walk: Walk, recorded: Value, replayed: Value, *, is_new: bool) -> None:
        ones, others = (
            [h for h in handles.found_by(walk, whole) if not is_nothing(h)] for whole in (recorded, replayed)
        )
        is_cursor = service.handles.get(kind) in handles.CURSORS
        if len(ones) == len(others) == 1:
            pairs = [(ones[0], others[0])]
        else:
            pairs = _matched(ones, others, partial(self._stands_for, service, kind))
        for one, other in pairs:
            self._learn(service, kind, one, other, overrides=is_new or is_cursor, is_cursor=is_cursor)

    def _learn(
        self, service: Service, kind: str, recorded: Value, replayed: Value, *, overrides: bool, is_cursor: bool = False
    ) -> None:
        known = self._stands_for(service, kind, recorded)
        if overrides or known is None or known == replayed:
            self._replayed.put(key_of(service, kind, recorded), replayed, overrides=True)
            self._recorded.put(key_of(service, kind, replayed), recorded, overrides=is_cursor)

    def _given_back(self, service: Service, kind: str, value: Value) -> Value:
        if is_nothing(value):
            return value
        found = self._recorded.get(key_of(service, kind, value))
        return self._bound_back.get(str(value), value) if found is None else found

    def _sent(self, exchange: Exchange, method: Method, service: Service) -> dict[str, str]:
        """The handles that a recorded call took, by what was sent for them: a fault may name them."""
        sent: dict[str, str] = {}
        try:
            arguments = typed.read_arguments(method, exchange.request.arguments or {})
        except Mismatch:
            return sent
        for place in self._places.consumed(method):
            for value in handles.found_by(place.walk, arguments):
                if (stands := self._stands_for(service, place.kind, value)) is not None:
                    sent[str(stands)] = str(value)
        return sent

    def _named_back(self, service: Service, sent: Mapping[str, str], text: str) -> str:
        if text in sent:
            return sent[text]
        return str(self._given_back(service, ANY_KIND, text)) if handles.is_reference(text) else text


def is_name(service: Service, kind: str, value: Value) -> bool:
    """Whether it is a name that its caller chose, and no handle."""
    return kind not in service.handles and not handles.is_made_up(value)


def has_references(service: Service) -> bool:
    return HandleForm.REFERENCE in service.handles.values()


def _first(path: str) -> str:
    """The name of the parameter in which a path begins."""
    return _STEP.split(path.removeprefix("arguments."), maxsplit=1)[0]


def _redacted(name: str) -> Unbound:
    return Unbound(f"redacted {name}", f"{name} was redacted in the capture: bind it with --bind")


def _shown(handle: str) -> str:
    return handle if is_token(handle) else handles.masked(handle)


def _matched(ones: list[Value], others: list[Value], known: Callable[[Value], Value]) -> list[tuple[Value, Value]]:
    """Which handles of a place stand for each other, as the top of this file says."""
    left = dict.fromkeys(others)
    pairs: list[tuple[Value, Value]] = []
    strangers: list[Value] = []
    for one in dict.fromkeys(ones):
        stands = known(one)
        for other in (stands, one):
            if other is not None and other in left:
                pairs.append((one, other))
                del left[other]
                break
        else:
            if stands is None:
                strangers.append(one)
    if len(strangers) == len(left):
        pairs += zip(strangers, left, strict=True)
    return pairs


def _references(recorded: Value, replayed: Value, known: Callable[[Value], Value]) -> Iterator[tuple[Value, Value]]:
    """The references that stand in the same place of two values."""
    match recorded, replayed:
        case str(), str():
            if handles.is_reference(recorded) and handles.is_reference(replayed):
                yield recorded, replayed
        case dict(), dict():
            for name in recorded.keys() & replayed.keys():
                if handles.is_reference(name):
                    yield name, name
                yield from _references(recorded[name], replayed[name], known)
        case Tagged(), Tagged():
            if recorded.tag == replayed.tag:
                yield from _references(recorded.argument, replayed.argument, known)
        case (list() as ones, list() as others) | (tuple() as ones, tuple() as others):
            yield from _references_of_many([*ones], [*others], known)


def _references_of_many(
    recorded: list[Value], replayed: list[Value], known: Callable[[Value], Value]
) -> Iterator[tuple[Value, Value]]:
    ones, others = ([item for item in side if handles.is_reference(item)] for side in (recorded, replayed))
    if ones or others:
        yield from _matched(ones, others, known)
    elif len(recorded) == len(replayed):
        for one, other in zip(recorded, replayed, strict=True):
            yield from _references(one, other, known)


def _note(found: list[str], text: str) -> str:
    found.append(text)
    return text


def texts_changed(value: Value, change: Callable[[str], str]) -> Value:
    """A value with each of its texts changed, the keys of maps too."""
    match value:
        case str():
            return change(value)
        case Tagged(tag, argument):
            return Tagged(tag, texts_changed(argument, change))
        case list():
            return [texts_changed(item, change) for item in value]
        case tuple():
            return tuple(texts_changed(item, change) for item in value)
        case dict():
            return {change(name): texts_changed(item, change) for name, item in value.items()}
    return value
