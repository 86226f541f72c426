"""The one face over XML-RPC and JSON-RPC, held against recorded calls and replies of both."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from tests.xmlrpc_gateway.json16 import load
from xmlrpc_gateway.dialects import Failure, Success
from xmlrpc_gateway.encodings import JSON_RPC_LIGHT, JSON_RPCLIB, JSON_XAPI, XML, Encoding
from xmlrpc_gateway.errors import CodecError

if TYPE_CHECKING:
    from xmlrpc_gateway.xmlrpc_codec import Value

ENCODINGS = [XML, JSON_RPCLIB, JSON_RPC_LIGHT, JSON_XAPI]
each = pytest.mark.parametrize("encoding", ENCODINGS, ids=lambda encoding: encoding.name)


def recorded_bodies(encoding: Encoding, recordings: Callable[[str], list[Any]]) -> list[Any]:
    if encoding is XML:
        return [each for each in recordings("xenopsd-http-allcalls") if each.response]
    return load("xenopsd2013-bin" if encoding is JSON_RPC_LIGHT else "xenopsd-json16-allcalls")


@each
def test_recorded_exchanges_pass_through_the_face(encoding: Encoding, recordings: Callable[[str], list[Any]]) -> None:
    """A recorded call is read, its method seen by a look, and its recorded reply is read and written again."""
    recorded = recorded_bodies(encoding, recordings)
    assert len(recorded) > 100
    for recording in recorded:
        incoming = encoding.read_call(recording.request_body)
        assert encoding.method_of(recording.request_body) == incoming.method
        reply = encoding.read_reply(recording.response_body)
        if isinstance(reply, Success):
            again = encoding.write_success(incoming.reply_to, reply.value)
        elif encoding is JSON_XAPI:
            continue  # an encoded exception is no failure of xapi's
        else:
            again = encoding.write_failure(incoming.reply_to, reply.description)
        expected = recording.response_body
        if encoding is JSON_XAPI:
            expected = expected.replace(b'"id":0}', b'"id":%d}' % json.loads(recording.request_body)["id"])
        assert again == expected, recording.label


def test_recorded_mistakes_over_xml_are_those_of_the_daemon() -> None:
    """What the daemon of 2013 closed on cannot be read; what it answered can, and its replies survive."""
    recorded = [each for each in load("xenopsd2013-xml-errors") if each.label != "18_GET"]  # which is HTTP's matter
    assert [each.label for each in recorded if not each.response] == ["16_bad_xml", "17_empty"]
    for recording in recorded:
        if not recording.response:
            with pytest.raises(CodecError):
                XML.read_call(recording.request_body)
            continue
        assert XML.read_call(recording.request_body).method == XML.method_of(recording.request_body)
        reply = XML.read_reply(recording.response_body)
        write = XML.write_success if isinstance(reply, Success) else XML.write_failure
        said = reply.value if isinstance(reply, Success) else reply.description
        assert write(None, said) == recording.response_body, recording.label


@each
def test_calls_and_replies_of_ours_are_read_back(encoding: Encoding) -> None:
    """What one side writes, the other reads, in all three kinds of reply."""
    integer: Value = "5" if encoding.integers_as_text else 5
    params: list[Value] = ["s", {"a": [True, None, 1.5, integer]}]
    incoming = encoding.read_call(encoding.write_call("VM.start", params))
    assert (incoming.method, incoming.params) == ("VM.start", params)
    assert encoding.read_reply(encoding.write_success(incoming.reply_to, params)) == Success(params)
    description: Value = ["CODE", "p"]
    assert encoding.read_reply(encoding.write_failure(incoming.reply_to, description)) == Failure(description)
    assert encoding.read_reply(encoding.write_bare(incoming.reply_to, ["a", "b"])) == Success(["a", "b"])
    for reply in (encoding.write_success(None, ""), encoding.write_failure(None, description)):
        encoding.read_reply(reply)


def test_ids_of_our_calls_count_up() -> None:
    """Each call has its own id, an integer."""
    first, second = (json.loads(encoding.write_call("a", []))["id"] for encoding in (JSON_RPCLIB, JSON_XAPI))
    assert type(first) is int
    assert second == first + 1


def test_how_they_differ() -> None:
    """Names, content types, and how integers are passed."""
    assert len({encoding.name for encoding in ENCODINGS}) == 4
    assert [encoding.content_type for encoding in ENCODINGS] == ["text/xml", *["application/json"] * 3]
    assert [encoding.integers_as_text for encoding in ENCODINGS] == [True, False, False, False]


def test_the_bytes_of_each() -> None:
    """A result without an envelope over XML is the plain result over JSON."""
    assert XML.write_bare(None, ["a"]) == (
        b'<?xml version="1.0"?><methodResponse><params><param><value><array><data><value>a</value></data></array>'
        b"</value></param></params></methodResponse>"
    )
    assert b"<name>Status</name><value>Success</value>" in XML.write_success(None, "a")
    incoming = JSON_XAPI.read_call(b'{"jsonrpc":"2.0","method":"system.listMethods","params":[],"id":"i"}')
    assert JSON_XAPI.write_bare(incoming.reply_to, ["a"]) == b'{"jsonrpc":"2.0","result":["a"],"id":"i"}'
    call = JSON_RPC_LIGHT.write_call("a", [1, 2])
    assert call.startswith(b'{"method": "a", "params": [1, 2], "id": ')
    assert JSON_RPCLIB.write_call("a", [1, 2]).startswith(b'{"method":"a","params":[1,2],"id":')
    assert JSON_XAPI.write_call("a", []).startswith(b'{"jsonrpc":"2.0","method":"a","params":[],"id":')


@pytest.mark.parametrize(
    ("body", "code", "says"),
    [
        (b"nonsense", -32700, "Parse error: no JSON"),
        (b'{"method":"a"', -32700, "Parse error: no JSON"),
        (b'{"method":"\xff"}', -32700, "is no UTF-8"),
        (b"[]", -32600, "Invalid Request: expected one call"),
        (b"5", -32600, "Invalid Request: expected an object, got an integer"),
        (b'{"method":"a","params":[],"id":null}', -32600, "id: expected a float or a string or an integer, got null"),
        (b'{"method":"a","params":{},"id":1}', -32600, "params: expected an array, got an object"),
        (b'{"method":"a","params":[{"b":1,"b":2}],"id":1}', -32600, "params[0]: member 'b' occurs twice"),
        (b'{"method":"a","params":[' + b"[" * 100 + b"]" * 100 + b'],"id":1}', -32600, "nested too deeply"),
        (b'{"method":"a","params":[{"\\ud800":[99999999999999999999]}],"id":1}', -32600, "Invalid Request"),
    ],
)
def test_xapi_says_why_a_call_cannot_be_read(body: bytes, code: int, says: str) -> None:
    """Over JSON it has words for it; the services close, and over XML the HTTP status says it."""
    for encoding in ENCODINGS:
        with pytest.raises(CodecError) as caught:
            encoding.read_call(body)
        reply = encoding.refusal(caught.value)
        if encoding is not JSON_XAPI:
            assert reply is None
            continue
        assert reply is not None
        said = json.loads(reply)
        assert set(said) == {"jsonrpc", "error", "id"}
        assert (said["jsonrpc"], said["error"]["code"], said["id"]) == ("2.0", code, None)
        assert says in said["error"]["message"]


def test_a_refusal_is_short() -> None:
    """However long the names are that lead to the mistake."""
    body = b'{"method":"a","params":[{"%s":{"a":1,"a":2}}],"id":1}' % (b"x" * 100_000)
    with pytest.raises(CodecError) as caught:
        JSON_XAPI.read_call(body)
    reply = JSON_XAPI.refusal(caught.value)
    assert reply is not None
    assert len(reply) < 1000


FILLING = b"x" * 100_000


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (b'<?xml version="1.0"?>\n<methodCall>\n<methodName>VM.start</methodName><params/>', "VM.start"),
        (b"<methodCall><methodName> a b </methodName>", " a b "),
        (b"<methodCall><methodName>a&amp;b</methodName>", ""),
        (b"<methodCall><methodName>a", ""),
        (b"<methodCall><methodName>\xc3\xa9</methodName>", ""),
        (b"<methodCall><!-- <methodName>no</methodName> --><methodName>yes</methodName>", ""),
        (b"<methodCall><params>" + FILLING + b"</params><methodName>late</methodName>", ""),
        (b"", ""),
    ],
)
def test_sees_the_method_in_xml(body: bytes, name: str) -> None:
    """A plain name near the start is seen; whatever is unusual is left to the parser."""
    assert XML.method_of(body) == name


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (b'{"method":"VM.start","params":[' + FILLING, "VM.start"),
        (b' {\n "jsonrpc": "2.0",\n "id": "a", "method" : "VM.start"', "VM.start"),
        (b'{"params":["' + FILLING + b'"],"id":1,"method":"VM.start"}\n', "VM.start"),
        (b'{"params":["' + FILLING + b'"], "method": "VM.start", "id": 1}', "VM.start"),
        (b'{"params":[{"method":"no"}],"method":"yes","id":1}', "yes"),
        (b'{"params":[{"method":"no"}],"id":1}', ""),
        (b'{"id":"\\"method\\":\\"no\\"","x":1}', ""),
        (b'{"id":"method","x":"yes"}', ""),
        (b'{"params":["' + FILLING + b'"],"method":"late","x":"' + FILLING + b'"}', ""),
        (b'{"meth\\u006fd":"a"}', ""),
        (b'{"method":"a\\u0062"}', ""),
        (b'{"method":1}', ""),
        (b'[{"method":"no"}]', ""),
        (b'{"method":"', ""),
        (b"", ""),
    ],
)
def test_sees_the_method_in_json(body: bytes, name: str) -> None:
    """A plain name among the message's own members at either end is seen, and never one within the parameters."""
    for encoding in (JSON_RPCLIB, JSON_RPC_LIGHT, JSON_XAPI):
        assert encoding.method_of(body) == name
