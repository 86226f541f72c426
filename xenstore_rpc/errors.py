"""What can go wrong between us and a xenstore.

```
XenstoreError
├── StoreRefused            the store answered with an error (ENOENT, EACCES, E2BIG, ...)
│   └── TransactionConflict     EAGAIN at commit: somebody else changed what the transaction looked at
├── StoreLost               no connection; `sent` says whether the operation may have reached the store
├── BadRecord               bytes from the other side that are no xenstore packet
├── InvalidPath             refused here: the store would not accept this path or name
├── ValueTooLong            refused here: the packet would exceed the protocol's 4096 bytes
├── ServerNotRegistered     nobody alive stands behind /SERVICE/pid
└── CallTimedOut            no response within the time given; the request stays and may still be executed
```
"""

from __future__ import annotations


class XenstoreError(Exception):
    """Root of everything this package raises on purpose."""


class StoreRefused(XenstoreError):
    """The store answered `error` (a name from errno, such as "ENOENT") to `operation` on `path`."""

    def __init__(self, error: str, operation: str, path: str) -> None:
        super().__init__(f"xenstore answered {error} to {operation} {path}".rstrip())
        self.error = error
        self.operation = operation
        self.path = path


class TransactionConflict(StoreRefused):
    """The store would not commit (EAGAIN); nothing of the transaction happened and it may be run again."""

    def __init__(self) -> None:
        super().__init__("EAGAIN", "TRANSACTION_END", "")


class StoreLost(XenstoreError):
    """The connection to the store is gone, or was not there; `sent`: the operation may have taken effect."""

    def __init__(self, text: str, *, sent: bool) -> None:
        super().__init__(text)
        self.sent = sent


class BadRecord(XenstoreError):
    """The peer sent bytes that are no packet of this protocol; the connection cannot be used further."""


class InvalidPath(XenstoreError):
    """A path or node name that no xenstore accepts."""

    def __init__(self, field: str, value: str, expected: str) -> None:
        super().__init__(f"{field}: {_shown(value)} is not valid, expected {expected}")
        self.field = field


class ValueTooLong(XenstoreError):
    """A value that does not fit into one packet together with its path; sizes in bytes."""

    def __init__(self, path: str, size: int, limit: int) -> None:
        super().__init__(f"{path}: value of {size} bytes is too long, at most {limit} bytes fit behind this path")
        self.path = path
        self.size = size
        self.limit = limit


class ServerNotRegistered(XenstoreError):
    """`/SERVICE/pid` is missing, is no process id, or names a process that we cannot see alive."""

    def __init__(self, service: str, reason: str) -> None:
        super().__init__(f"no server is registered for {service}: {reason}")
        self.service = service


class CallTimedOut(XenstoreError):
    """No response came in time. The request was left in the store and may still be executed."""

    def __init__(self, request_id: str) -> None:
        super().__init__(f"request {request_id} was not answered in time and may still be executed")
        self.request_id = request_id


def _shown(value: str) -> str:
    return repr(value if len(value) <= 80 else value[:77] + "...")
