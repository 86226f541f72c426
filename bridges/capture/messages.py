"""What doors and legs hand over to a capture: messages as they were, by reference.

Nothing is decoded or copied here, since a caller waits meanwhile; `describing` reads them later. `size` is about how
many bytes a message holds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeAlias

from bridges.dbus_translation import MethodForm
from bridges.faults import Fault
from bridges.xmlrpc_translation import Translation
from dbus_side.errors import BusRefused
from xenstore_rpc.records import Request, Response
from xmlrpc_gateway.encodings import Encoding
from xmlrpc_gateway.http_messages import CloseSilently, HttpReply, HttpRequest

Tongue: TypeAlias = tuple[Encoding, Translation]

_SCALAR: Final = 16  # bytes, whatever it is


class HttpCall(NamedTuple):
    """A call that came in an HTTP request."""

    tongue: Tongue
    request: HttpRequest

    @property
    def body(self) -> bytes:
        return self.request.body

    @property
    def size(self) -> int:
        return len(self.request.body)


class SocketCall(NamedTuple):
    """A call by its body alone: on a framed socket, or one of our own to a daemon over HTTP or in a frame."""

    tongue: Tongue
    body: bytes

    @property
    def size(self) -> int:
        return len(self.body)


class SocketAnswer(NamedTuple):
    """The answer to either: an HTTP reply, the body alone (over HTTP the door makes its head), or the silent close."""

    tongue: Tongue
    reply: HttpReply | bytes | CloseSilently

    @property
    def size(self) -> int:
        reply = self.reply
        return 0 if isinstance(reply, CloseSilently) else len(reply if isinstance(reply, bytes) else reply.body)


class StoreCall(NamedTuple):
    """A request in the store; `request` is None for an observed one that was gone before it was read."""

    request: Request | None
    function: str
    request_id: str

    @property
    def size(self) -> int:
        return 0 if self.request is None else nodes_size(self.request.arguments)


class StoreAnswer(NamedTuple):
    """A response in the store; None for an observed one that was gone before it was read."""

    response: Response | None

    @property
    def size(self) -> int:
        return 0 if self.response is None else nodes_size(self.response.results)


class BusCall(NamedTuple):
    """A method call on the bus. `serial` is 0 for one of our own: the connection counts them."""

    form: MethodForm
    destination: str
    sender: str
    serial: int
    body: tuple[Any, ...]

    @property
    def size(self) -> int:
        return _about(self.body)


class BusAnswer(NamedTuple):
    """A method's return on the bus."""

    form: MethodForm
    signature: str
    body: tuple[Any, ...]

    @property
    def size(self) -> int:
        return _about(self.body)


class BusFailure(NamedTuple):
    """An error on the bus."""

    form: MethodForm
    refusal: BusRefused

    @property
    def size(self) -> int:
        return _about(self.refusal.body)


class Late(NamedTuple):
    """A message that is read when it is described: nobody who hands it over has to read it. `size` is in bytes."""

    read: Callable[[], BusCall | BusAnswer | BusFailure]
    size: int


class DatagramCall(NamedTuple):
    """A datagram: a method's name, which is never answered."""

    payload: bytes

    @property
    def size(self) -> int:
        return len(self.payload)


class PageCall(NamedTuple):
    """HTTP that is no call, by its method and its target without the query."""

    head: str

    @property
    def size(self) -> int:
        return len(self.head)


class Said(NamedTuple):
    """The end of a leg by a fault of ours: nothing was on a wire."""

    fault: Fault
    size: int = 0


class Nothing(NamedTuple):
    """The end of a leg in which nothing is answered (a datagram), or nothing is looked at (a page)."""

    size: int = 0


class AsCaller(NamedTuple):
    """The message of a leg that is, byte for byte, the caller's."""

    size: int = 0


AS_CALLER: Final = AsCaller()

Asking: TypeAlias = HttpCall | SocketCall | StoreCall | BusCall | DatagramCall | PageCall | AsCaller
Answering: TypeAlias = SocketAnswer | StoreAnswer | BusAnswer | BusFailure | Said | Nothing | AsCaller
Message: TypeAlias = Asking | Answering | Late


def nodes_size(nodes: tuple[tuple[str, bytes], ...]) -> int:
    """The bytes of nodes in the store: names and values."""
    return sum(len(name) + len(value) for name, value in nodes)


def _about(value: Any) -> int:
    """Roughly the bytes of a body of the bus: elements of arrays and maps are taken to be like the first."""
    match value:
        case str() | bytes():
            return len(value)
        case tuple():
            return sum(map(_about, value))
        case list() if value:
            return len(value) * _about(value[0])
        case dict() if value:
            return len(value) * sum(map(_about, next(iter(value.items()))))
        case _:
            return _SCALAR
