"""What tests/golden holds, as messages: the samples of the marshaller, and recorded exchanges without their framing."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from bridges.interfaces import model
from tests.bridges.fidelity_forms import Form
from xmlrpc_gateway.encodings import JSON_RPC_LIGHT, JSON_RPCLIB, XML
from xmlrpc_gateway.errors import Malformed
from xmlrpc_gateway.framed_messages import HEAD_SIZE, body_length

GOLDEN: Final = Path(__file__).parents[1] / "golden"


def lines(file: str) -> list[dict[str, Any]]:
    """The JSON lines of a file below tests/golden."""
    data = (GOLDEN / file).read_bytes()
    text = gzip.decompress(data) if file.endswith(".gz") else data
    return [json.loads(line, object_pairs_hook=_unique) for line in text.decode().splitlines()]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The members of an object, none of them twice: the typed form could not carry that."""
    members = dict(pairs)
    assert len(members) == len(pairs)
    return members


# --- samples ---------------------------------------------------------------------------------------------------------

SAMPLES: Final = {
    "memory.jsonl": "squeezed",
    "network.jsonl": "networkd",
    "gpumon.jsonl": "gpumon",
    "storage.jsonl.gz": "storage",
    "rrd.jsonl": "rrdd",
    "v6.jsonl": "v6d",
    "xenops.generated.jsonl.gz": "xenopsd",
}


class Sample(NamedTuple):
    """A call of the marshaller and replies to it, as JSON-RPC has them; `xml` are the bytes where XML was recorded."""

    name: str
    request: dict[str, Any]
    responses: list[dict[str, Any]]
    xml: tuple[bytes, ...]


def samples(file: str) -> Iterator[Sample]:
    """The samples of a file."""
    for number, line in enumerate(lines(f"rpclib-samples/{file}")):
        xml = (line["request_xml"], *line["responses_xml"]) if "request_xml" in line else ()
        yield Sample(f"{number} {line['method']}", line["request"], line["responses"], tuple(t.encode() for t in xml))


# --- recordings ------------------------------------------------------------------------------------------------------


class Exchange(NamedTuple):
    """One recorded exchange: the bodies. None: no body could be cut out, or the daemon closed in silence."""

    name: str
    request: bytes | None
    reply: bytes | None


def http_body(message: bytes) -> bytes:
    """The body of a recorded message, whatever ends its lines, cut where the next message begins."""
    _, _, rest = message.replace(b"\n\nPOST", b"").partition(b"\r\n\r\n" if b"\r\n\r\n" in message else b"\n\n")
    return rest.partition(b"POST / HTTP/1.1")[0]


def framed_body(message: bytes) -> bytes | None:
    """The body of a frame; None when its length cannot be read or too little follows."""
    try:
        length = body_length(message[:HEAD_SIZE])
    except Malformed:
        return None
    body = message[HEAD_SIZE:][:length]
    return body if len(body) == length else None


class Recording(NamedTuple):
    """A file of recorded exchanges, how its bodies are cut out, and the form of its messages."""

    file: str
    form: Form
    cut: Callable[[bytes], bytes | None]


TODAY_XML: Final = Form("xenopsd", XML, "rpclib")
TODAY_JSON: Final = Form("xenopsd", JSON_RPCLIB, "rpclib")
OLD_XML: Final = Form("xenopsd-2012", XML, "rpclib-2012")
OLD_JSON: Final = Form("xenopsd-2012", JSON_RPC_LIGHT, "rpclib-2012")
RECORDINGS: Final = (
    Recording("xmlrpc/xenopsd-http-allcalls.jsonl", TODAY_XML, http_body),
    Recording("xmlrpc/xenopsd-http-cli.jsonl", TODAY_XML, http_body),
    Recording("xmlrpc/xenopsd-http-testsuite.jsonl", TODAY_XML, http_body),
    Recording("json16/xenopsd-json16-allcalls.jsonl", TODAY_JSON, framed_body),
    Recording("message-switch/message-switch.jsonl.gz", TODAY_JSON, http_body),
    Recording("xmlrpc/xenopsd2013-xml.jsonl", OLD_XML, http_body),
    Recording("json16/xenopsd2013-json.jsonl", OLD_JSON, http_body),
    Recording("json16/xenopsd2013-bin.jsonl", OLD_JSON, framed_body),
    Recording(
        "json16/squeezed-json16-rpclight2012.jsonl", Form("squeezed-2012", JSON_RPC_LIGHT, "rpclib-2012"), framed_body
    ),
)
WRONG_INPUT: Final = (
    Recording("xmlrpc/xenopsd-http-errors.jsonl", TODAY_XML, http_body),
    Recording("json16/xenopsd-json16-errors.jsonl", TODAY_JSON, framed_body),
    Recording("json16/xenopsd2013-xml-errors.jsonl", OLD_XML, http_body),
    Recording("json16/xenopsd2013-json-errors.jsonl", OLD_JSON, http_body),
    Recording("json16/xenopsd2013-bin-errors.jsonl", OLD_JSON, framed_body),
)


def exchanges(recording: Recording) -> Iterator[Exchange]:
    """The exchanges of a file. What is no call at all, a GET, is HTTP's matter."""
    if recording.file.startswith("message-switch"):
        yield from _switched(recording.file)
        return
    for line in lines(recording.file):
        request, response = (base64.b64decode(line[key]) for key in ("request", "response"))
        if not request.startswith(b"GET "):
            yield Exchange(line["exchange"], recording.cut(request), recording.cut(response) if response else None)


def _switched(file: str) -> Iterator[Exchange]:
    """The calls that services got from message-switch, with their replies, by queue and number."""
    queues = {queue for name in model.services() if (queue := model.load(name).queue)}
    calls: dict[str, bytes] = {}
    replies: dict[str, bytes] = {}
    for line in lines(file):
        for head, body in _http_messages(base64.b64decode(line["request"])):
            if head.startswith(b"POST /response/"):
                replies["/".join(head.split()[1].decode().split("/")[3:])] = body
        for _, body in _http_messages(base64.b64decode(line["response"])):
            transfer = json.loads(body) if body.startswith(b'{"messages"') else {"messages": []}
            for (queue, number), message in transfer["messages"]:
                if queue in queues and message["kind"][0] == "Request":
                    calls[f"{queue}/{number}"] = message["payload"].encode()
    for name, call in calls.items():
        yield Exchange(name, call, replies.get(name))


def _http_messages(stream: bytes) -> Iterator[tuple[bytes, bytes]]:
    """First line and body of every message of a connection that is kept alive."""
    while stream:
        head, _, stream = stream.partition(b"\r\n\r\n")
        length = int(head.partition(b"content-length: ")[2].split(b"\r\n")[0])
        yield head.partition(b"\r\n")[0], stream[:length]
        stream = stream[length:]
