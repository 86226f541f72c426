"""What can go wrong between us and XML-RPC peers.

```
GatewayError
├── CodecError              a value or document that cannot be read or written; `place` says where in it
│   ├── Malformed               no XML, or XML that is no methodCall / methodResponse
│   ├── Forbidden               refused for safety: DOCTYPE, encoding, NUL
│   │   └── OverLimit               size, number of values, depth
│   ├── UnknownTag              a type that XML-RPC and rpclib do not have
│   ├── BadScalar               the text of a boolean, number or base64 is not one
│   ├── DuplicateMember         a struct with the same member twice
│   └── NotXmlText              a string with characters that XML cannot carry
├── DaemonError             the legacy daemon gave no answer; `sent` says whether it may have executed the call
│   ├── DaemonUnreachable       nothing was sent
│   ├── DaemonGone              the connection was lost after something was sent
│   ├── DaemonTimedOut          the deadline passed after something was sent
│   └── BadReply                it answered with something that is no reply
│       └── ClosedSilently          it closed without a byte: how rpclib services refuse what they cannot read
└── AddressTaken            somebody else serves the socket that we were told to take
```
"""

from __future__ import annotations

from typing import ClassVar


class GatewayError(Exception):
    """Root of everything this package raises on purpose."""


class CodecError(GatewayError):
    """A value or document that cannot be read or written.

    `place` is the way to it from the document's root, such as `params[0].Value[3].name`; empty for the document itself.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        # Innermost step first: each level adds its own while the exception passes through it.
        self.steps: list[str] = []

    @property
    def place(self) -> str:
        return "".join(reversed(self.steps)).removeprefix(".")

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}" if self.steps else self.reason


class Malformed(CodecError):
    """The bytes are no XML, or the XML is no methodCall or methodResponse."""


class Forbidden(CodecError):
    """The document was refused for safety before its meaning was looked at."""


class OverLimit(Forbidden):
    """The document is larger or nested deeper than is read or written; the text names the limit."""


class UnknownTag(CodecError):
    """A value of a type that XML-RPC and rpclib do not have."""

    def __init__(self, tag: str) -> None:
        super().__init__(f"<{tag[:60]}> is no XML-RPC type")
        self.tag = tag


class BadScalar(CodecError):
    """The text of a boolean, number or base64 is not one. `tag` is the type's tag as on the wire."""

    def __init__(self, tag: str, text: str, expected: str) -> None:
        super().__init__(f"<{tag}> holds {text[:60]!r}, expected {expected}")
        self.tag = tag


class DuplicateMember(CodecError):
    """A struct has the member `name` twice: legacy lists of pairs allow it, a map does not."""

    def __init__(self, name: str) -> None:
        super().__init__(f"member {name[:60]!r} occurs twice")
        self.name = name


class NotXmlText(CodecError):
    """A string holds control characters, surrogates or non-characters, which no XML document can carry."""


class DaemonError(GatewayError):
    """The legacy daemon gave no answer to a call."""

    sent: ClassVar[bool] = True
    """Whether any of the request was sent, so that the daemon may have executed it."""


class DaemonUnreachable(DaemonError):
    """There was no connection, or no time was left to make one; the daemon has not seen the request."""

    sent = False


class DaemonGone(DaemonError):
    """The connection was lost after something was sent and before the reply was complete."""


class DaemonTimedOut(DaemonError):
    """The deadline passed while the daemon had the request."""


class BadReply(DaemonError):
    """The daemon answered, but not with a reply we can hand on."""


class ClosedSilently(BadReply):
    """The daemon closed the connection in order, without a byte."""


class AddressTaken(GatewayError):
    """A socket that we were told to take is served by somebody who is not the daemon behind it."""
