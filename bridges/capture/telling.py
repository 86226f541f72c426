"""What may be told of a call outside of a capture: in the log, in the status, in the journal."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable
from typing import Final

from bridges.calls import Value
from bridges.capture.redaction import Redactor
from bridges.capture.rules import UNDECLARED, without_secrets
from bridges.comparison import ABSENT, SECRET, Difference, Outcome
from bridges.faults import Fault, Kind
from bridges.interfaces.model import Method, Service

# Of our own words what stands in quotes is a caller's or a daemon's, to the end: it may have quotes in it.
_QUOTED: Final = re.compile(r"""(?<!\w)b?["'].*""", re.DOTALL)
_ABSENT: Final = repr(ABSENT)
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
        self._redactor = Redactor(secrets.token_bytes(16))

    def has_secrets(self, method: Method, arguments: dict[str, Value], *outcomes: Outcome) -> bool:
        """Whether a call's arguments or what was answered to it hold a secret that is no reference."""
        try:
            return self._finds_any(method, arguments, outcomes)
        except Exception:  # a value that is not of its type
            return True

    def _finds_any(self, method: Method, arguments: dict[str, Value], outcomes: Iterable[Outcome]) -> bool:
        redacted = self._redactor.arguments(self._service, method, arguments)
        known, kept = redacted.secrets, [redacted.value]
        for outcome in outcomes:
            if isinstance(outcome, Fault):
                fault, _ = self._redactor.fault(self._service, method, outcome, known)
                kept += [fault.text, fault.code, fault.argument]
            else:
                redacted = self._redactor.result(self._service, method, outcome, known)
                known |= redacted.secrets
                kept.append(redacted.value)
        text = repr(kept)
        return SECRET in text or UNDECLARED in text

    def examples(
        self,
        method: Method | None,
        arguments: dict[str, Value] | None,
        outcomes: Iterable[Outcome],
        found: list[Difference],
    ) -> list[Difference]:
        """Differences as they may be shown.

        In a call with secrets, or one that was not read, every text may be one, and so may what only one side has: it
        need not be written down.
        """
        if not found:
            return found
        is_open = method is not None and arguments is not None and not self.has_secrets(method, arguments, *outcomes)
        return [
            Difference(each.path, *map(self._redactor.text if is_open and _ABSENT not in each else harmless, each[1:]))
            for each in found
        ]
