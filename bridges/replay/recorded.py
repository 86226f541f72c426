"""A daemon made of recorded answers: it executes nothing, and answers what was asked when it was recorded.

A call is the same as a recorded one when method and arguments are, but for the text that callers give for the log
(`debug_info`, `dbg`) and for fields that were redacted in the recording. Several answers to the same call are given in
recorded order; when they are used up a read gets the last one again, and a write is unmatched: it would change
something, so that what it got then is no answer to one more. What is unmatched is a fault and is counted; nothing is
ever passed on.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import msgspec

from bridges.calls import Call, Value
from bridges.capture import records, typed
from bridges.capture.records import Complete, Reply
from bridges.faults import Fault, Kind
from bridges.interfaces.model import Effect, Method, Service
from bridges.replay.pairs import FOR_THE_LOG, Exchange, NotRecorded, answer_of

LIMIT_BYTES: Final = 1 << 30
_STEP: Final = re.compile(r"\.?([^.\[\]{}]+)|\[([^\]]*)\]|\{([^}]*)\}")
_encode: Final = msgspec.json.Encoder(order="sorted").encode

Paths = tuple[str, ...]


class TooMuch(Exception):
    """The answers of the capture are more than is kept in memory."""


class Summary(msgspec.Struct, frozen=True):
    """What came of a stand-in, by method: calls served and unmatched, recorded answers that were never asked for.

    `unusable` counts by why the exchanges of the recording that could not be used.
    """

    served: dict[str, int]
    unmatched: dict[str, int]
    never_asked: dict[str, int]
    unusable: dict[str, int]


class _Answers:
    """The answers to one call; `given` of them were asked for."""

    __slots__ = ("given", "kept")

    def __init__(self) -> None:
        self.kept: list[bytes] = []
        self.given = 0

    @property
    def is_used_up(self) -> bool:
        return self.given >= len(self.kept)

    def next(self) -> bytes:
        """The next one, the last one again once they are used up."""
        answer = self.kept[min(self.given, len(self.kept) - 1)]
        self.given += 1
        return answer


class Recorded:
    """The recorded answers of one service, as a backend. `tell` is told a sentence for each unmatched call."""

    def __init__(self, service: Service, tell: Callable[[str], None]) -> None:
        self.service = service
        self._tell = tell
        self._answers: dict[bytes, _Answers] = {}
        self._methods: dict[bytes, str] = {}
        self._ignored: dict[str, dict[Paths, None]] = {}  # by method: which fields were redacted, in any exchange
        self._same: dict[bytes, bytes] = {}
        self._size = 0
        self._served: Counter[str] = Counter()
        self._unmatched: Counter[str] = Counter()
        self._unusable: Counter[str] = Counter()

    def load(self, exchanges: Iterable[Exchange]) -> int:
        """Keeps the answers; how many. Blocking; exchanges of other services are passed over. Raises TooMuch."""
        count = 0
        for exchange in exchanges:
            if exchange.request.service == self.service.name:
                why = self._keep(exchange)
                if why is None:
                    count += 1
                else:
                    self._unusable[why] += 1
        return count

    def _keep(self, exchange: Exchange) -> str | None:
        """None, or why it cannot be used."""
        request, reply = exchange.request, exchange.reply
        method = self.service.method(request.method)
        if method is None:
            return "no such method"
        if request.arguments is None or request.complete is not Complete.COMPLETE:
            return "arguments not recorded"
        try:
            answer_of(method, reply)
        except NotRecorded as error:
            return str(error)
        assert reply is not None
        paths = tuple(sorted(path.removeprefix("arguments.") for path in request.redacted))
        self._ignored.setdefault(method.name, {})[paths] = None
        key = _key(method, request.arguments, paths)
        self._methods[key] = method.name
        self._answers.setdefault(key, _Answers()).kept.append(self._kept(reply))
        return None

    def _kept(self, reply: Reply) -> bytes:
        """What is needed of a reply, one copy of equal ones. Raises TooMuch."""
        bare = Reply(
            0, "", reply.leg, "", "", reply.service, reply.door, 0, 0, reply.outcome, result=reply.result,
            fault=reply.fault,
        )  # fmt: skip
        kept = records.encode(bare)
        if kept not in self._same:
            self._size += len(kept)
            if self._size > LIMIT_BYTES:
                raise TooMuch(f"the recorded answers are more than {LIMIT_BYTES >> 20} MiB: choose fewer methods")
        return self._same.setdefault(kept, kept)

    async def ask(self, call: Call) -> Value:
        """The recorded answer, a recorded fault as it was. Raises Fault UNAVAILABLE for what is unmatched."""
        method = call.method
        found = self._find(method, typed.write_arguments(method, call.arguments))
        if isinstance(found, str):
            self._unmatched[method.name] += 1
            self._tell(f"{method.service} {method.name} at the {call.door} door: {found}")
            raise Fault(Kind.UNAVAILABLE, f"{method.name}: {found}; nothing was executed")
        self._served[method.name] += 1
        reply = records.decode(found.next())
        assert isinstance(reply, Reply)
        answer = answer_of(method, reply)
        if isinstance(answer, Fault):
            raise answer
        return answer

    def _find(self, method: Method, arguments: dict[str, Any]) -> _Answers | str:
        """The answers to a call, or why there is none."""
        known = self._ignored.get(method.name)
        if known is None:
            return "no such call is in the capture"
        found = [a for paths in known if (a := self._answers.get(_key(method, arguments, paths))) is not None]
        if not found:
            return "no call with these arguments is in the capture"
        fresh = next((answers for answers in found if not answers.is_used_up), None)
        if fresh is None and method.effect is Effect.WRITE:
            return "it was not made so often in the capture"
        return fresh or found[-1]

    def summary(self) -> Summary:
        """What came of it so far."""
        never: Counter[str] = Counter()
        for key, answers in self._answers.items():
            if not answers.is_used_up:
                never[self._methods[key]] += len(answers.kept) - answers.given
        return Summary(dict(self._served), dict(self._unmatched), dict(never), dict(self._unusable))


def _key(method: Method, arguments: dict[str, Any], paths: Paths) -> bytes:
    """A digest of what must be the same."""
    compared: Any = {name: value for name, value in arguments.items() if name not in FOR_THE_LOG}
    for path in paths:
        compared = leave_out(compared, path)
    return hashlib.blake2b(_encode((method.name, paths, compared)), digest_size=16).digest()


def leave_out(value: Any, path: str) -> Any:
    """A value as JSON without what stands at a path, null in its place; paths are those of `comparison`.

    A map of which a key was redacted (`{#}`) is left out as a whole.
    """
    return _without(value, [next(filter(None, step)) for step in _STEP.findall(path)])


def _without(value: Any, steps: Sequence[str]) -> Any:
    if not steps or steps[0] == "#":
        return None
    step, rest = steps[0], steps[1:]
    match value:
        case dict():
            return {name: _without(item, rest) if step in (name, "*") else item for name, item in value.items()}
        case [str(tag), argument] if tag == step:
            return [tag, _without(argument, rest)]
        case list():
            return [_without(item, rest) if step in (str(i), "*") else item for i, item in enumerate(value)]
        case _:
            return value
