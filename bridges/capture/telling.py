"""What may be told of a call outside of a capture: in the log, in the status, in the journal."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from bridges.calls import Value
from bridges.capture.redaction import Redactor
from bridges.capture.rules import REFERENCE, SECRET, without_secrets
from bridges.comparison import Difference, Outcome
from bridges.faults import Fault, Kind
from bridges.interfaces.model import Method, Service

# Of our own words what stands in quotes is a caller's or a daemon's, to the end: it may have quotes in it.
_QUOTED: Final = re.compile(r"""(?<!\w)b?["'].*""", re.DOTALL)
_SERVICES_OWN: Final = frozenset({Kind.DECLARED, Kind.UNDECLARED})


def harmless(text: str) -> str:
    """A text of ours without what it quotes, and without what else looks like a secret."""
    return _QUOTED.sub(SECRET, without_secrets(text, lambda _: SECRET, set()))


def for_the_log(fault: Fault) -> str:
    """A fault as it may stand in the log: a service's own error has its declared code, not its words."""
    if fault.kind not in _SERVICES_OWN:
        return harmless(fault.sentence)
    return f"{fault.kind}: {fault.code}" if fault.kind is Kind.DECLARED else str(fault.kind)


class Teller:
    """The calls of one service."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._redactor = Redactor(b"")  # none of its tokens is ever shown

    def has_secrets(self, method: Method, arguments: dict[str, Value], *outcomes: Outcome) -> bool:
        """Whether a call's arguments or what was answered to it hold a secret that is no reference."""
        try:
            return self._finds_any(method, arguments, outcomes)
        except Exception:  # a value that is not of its type
            return True

    def _finds_any(self, method: Method, arguments: dict[str, Value], outcomes: Iterable[Outcome]) -> bool:
        found = set(self._redactor.arguments(self._service, method, arguments).secrets)
        for outcome in outcomes:
            if isinstance(outcome, Fault):
                shown, _ = self._redactor.fault(self._service, method, outcome, frozenset(found))
                if SECRET in f"{shown.text} {shown.code} {shown.argument!r}":
                    return True
            else:
                found |= self._redactor.result(self._service, method, outcome, frozenset(found)).secrets
        return any(not secret.startswith(REFERENCE) for secret in found)

    def examples(
        self,
        method: Method | None,
        arguments: dict[str, Value] | None,
        outcomes: Iterable[Outcome],
        found: list[Difference],
    ) -> list[Difference]:
        """Differences as they may be shown. In a call with secrets, or one that was not read, every text may be one."""
        if not found:
            return found
        is_open = method is not None and arguments is not None and not self.has_secrets(method, arguments, *outcomes)
        shown = self._redactor.text if is_open else harmless
        return [Difference(path, shown(left), shown(right)) for path, left, right in found]
