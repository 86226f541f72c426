"""The JSON-RPC codec against recorded bytes, the reference's tables, hostile documents and itself."""

from __future__ import annotations

import contextlib
import json
import math
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.xmlrpc_gateway.json16 import WELL_FORMED, WITH_ERRORS, Recording, load
from xmlrpc_gateway.dialects import Failure, Success
from xmlrpc_gateway.errors import CodecError, DuplicateMember, Forbidden, Malformed
from xmlrpc_gateway.jsonrpc_codec import (
    STYLES,
    Batch,
    NotJson,
    NotJsonValue,
    ReplyTo,
    decode_call,
    decode_reply,
    encode_call,
    encode_failure,
    encode_success,
)
from xmlrpc_gateway.xmlrpc_codec import DateTime, Limits

if TYPE_CHECKING:
    from xmlrpc_gateway.xmlrpc_codec import Value

RPCLIB, LIGHT, XAPI = STYLES["rpclib"], STYLES["rpc-light"], STYLES["xapi"]
# Recorded calls that were spelt wrongly on purpose, and what is wrong. Those with a wrong length are no JSON's matter.
UNREADABLE = {
    "03_id_null": "id: expected",
    "04_id_missing": "id: expected an integer, got nothing",
    "06_params_object": "params: expected an array, got an object",
    "10_params_missing": "params: expected an array, got nothing",
    "31_not_json": "no JSON",
    "33_json_array": "batches are not served",
    "34_json_scalar": "expected an object, got an integer",
}
UNKNOWN_METHOD = "07_unknown_method"  # readable, and refused by the daemon of v22.20 without a byte
FRAMING = ("36_", "37_", "40_", "41_", "42_", "43_", "44_", "45_")


def encoded_again(recording: Recording, style: str) -> bytes:
    """The recorded reply, decoded and encoded."""
    reply = decode_reply(recording.response_body, STYLES[style])
    reply_to = ReplyTo(0, 1)
    if isinstance(reply, Success):
        return encode_success(reply_to, reply.value, STYLES[style])
    return encode_failure(reply_to, reply.description, STYLES[style])


@pytest.mark.parametrize(("name", "style"), [*WELL_FORMED, *WITH_ERRORS])
def test_recorded_replies_survive_byte_for_byte(name: str, style: str) -> None:
    """Every reply of the real daemons decodes, and encodes to the same bytes again."""
    recorded = [recording for recording in load(name) if recording.response]
    assert len(recorded) > 5
    for recording in recorded:
        assert encoded_again(recording, style) == recording.response_body, recording.label


@pytest.mark.parametrize(("name", "style"), WELL_FORMED)
def test_recorded_calls_survive_byte_for_byte(name: str, style: str) -> None:
    """Every call that a real client marshalled decodes, and encodes to the same bytes again."""
    for recording in load(name):
        method, params, reply_to = decode_call(recording.request_body, STYLES[style])
        assert recording.label.endswith(method)
        assert isinstance(reply_to.id, int)
        assert encode_call(method, params, reply_to.id, STYLES[style]) == recording.request_body, recording.label


@pytest.mark.parametrize(("name", "style"), WITH_ERRORS)
def test_recorded_mistakes_are_those_of_the_daemon(name: str, style: str) -> None:
    """What the daemon answered we can read; what it closed on we cannot, but for an unknown method."""
    judged = 0
    for recording in load(name):
        if recording.label.startswith(FRAMING):
            continue
        judged += 1
        if recording.label in UNREADABLE:
            assert not recording.response
            with pytest.raises(CodecError) as caught:
                decode_call(recording.request_body, STYLES[style])
            assert UNREADABLE[recording.label] in str(caught.value)
        else:
            decode_call(recording.request_body, STYLES[style])
            assert recording.response or recording.label == UNKNOWN_METHOD
    assert judged > 10


def result(text: str) -> bytes:
    return f'{{"result":{text},"error":null,"id":0}}'.encode()


def written(value: Value, style: str) -> str:
    """The text of a value as it stands in a reply."""
    text = encode_success(ReplyTo(0, 1), value, STYLES[style]).decode()
    before, after = (
        ('{"result": ', ', "error": null, "id": 0}') if style == "rpc-light" else result("|").decode().split("|")
    )
    return text.removeprefix(before).removesuffix(after)


@pytest.mark.parametrize(
    ("value", "rpclib", "light"),
    [
        (None, "null", "null"),
        (True, "true", "true"),
        (False, "false", "false"),
        (7, "7", "7"),
        (2**63 - 1, "9223372036854775807", "9223372036854775807"),
        (-(2**63), "-9223372036854775808", "-9223372036854775808"),
        (1.0, "1.0", "1.000000"),
        (30.0, "30.0", "30.000000"),
        (0.1, "0.1", "0.100000"),
        (1336998963.25, "1336998963.25", "1336998963.250000"),
        (-0.0, "-0.0", "-0.000000"),
        (1e22, "1e+22", "10000000000000000000000.000000"),
        (1e16, "1e+16", "10000000000000000.000000"),
        (0.1 + 0.2, "0.30000000000000004", "0.30000000000000004"),
        (12345678901234568.0, "12345678901234568.0", "12345678901234568.000000"),
        (5e-324, "4.940656458412465e-324", None),
        (1e-9, "1e-09", "0.000000001"),
        ("", '""', '""'),
        ("a/b", '"a/b"', '"a\\/b"'),
        ('"\\', '"\\"\\\\"', '"\\"\\\\"'),
        ("\b\t\n\f\r", '"\\b\\t\\n\\f\\r"', '"\\b\\t\\n\\f\\r"'),
        ("\x00\x01\x1f", '"\\u0000\\u0001\\u001f"', '"\x00\x01\x1f"'),
        ("\\u0001\x01", '"\\\\u0001\\u0001"', '"\\\\u0001\x01"'),
        ("\x7f", '"\\u007f"', '"\x7f"'),
        ("\u20ac\U0001f600\u2028", '"\u20ac\U0001f600\u2028"', '"\u20ac\U0001f600\u2028"'),
        (b"hello", '"aGVsbG8="', '"aGVsbG8="'),
        (DateTime("20200101T00:00:00Z"), '"20200101T00:00:00Z"', '"20200101T00:00:00Z"'),
        ([], "[]", "[]"),
        ({}, "{}", "{}"),
        ([1, "a", [2.0]], '[1,"a",[2.0]]', '[1, "a", [2.000000]]'),
        ({"b/": {}, "a": [None]}, '{"b/":{},"a":[null]}', '{"b\\/": {}, "a": [null]}'),
    ],
)
def test_writes(value: Value, rpclib: str, light: str | None) -> None:
    """Each value has the spelling of yojson, and that of rpc-light."""
    assert written(value, "rpclib") == rpclib
    assert written(value, "xapi") == rpclib
    if light is not None:
        assert written(value, "rpc-light") == light


def test_a_float_is_never_rounded_away() -> None:
    """What six decimals cannot tell apart gets more of them in rpc-light, without an exponent."""
    for number in (5e-324, 1 / 3, 1.7976931348623157e308, 123456789.123456789):
        text = written(number, "rpc-light")
        assert float(text) == number
        assert "e" not in text


@pytest.mark.parametrize("style", ["rpclib", "xapi"])
@pytest.mark.parametrize(
    ("number", "text"), [(math.nan, "NaN"), (math.inf, "Infinity"), (-math.inf, "-Infinity")], ids=str
)
def test_numbers_that_are_none(style: str, number: float, text: str) -> None:
    """NaN and the infinities stand bare, both ways."""
    assert written([number], style) == f"[{text}]"
    read = decode_reply(result(text), STYLES[style])
    assert isinstance(read, Success)
    assert repr(read.value) == repr(number)


def test_rpc_light_has_no_such_numbers() -> None:
    """It cannot read them, so they are refused both ways, with their place."""
    with pytest.raises(NotJsonValue, match=r"^result\.a\[1\]: the float nan has no spelling"):
        written({"a": [0, math.nan]}, "rpc-light")
    with pytest.raises(NotJson, match=r"^result: no JSON: -Infinity is no number"):
        decode_reply(result("-Infinity"), LIGHT)


@pytest.mark.parametrize(
    ("text", "rpclib", "light"),
    [
        ('"\\u20ac\\ud83d\\ude00"', "\u20ac\U0001f600", "\\u20ac\\ud83d\\ude00"),
        ('"x/\\"\\\\\\u00e9"', 'x/"\\\u00e9', 'x/"\\\\u00e9'),
        ('"\\\\u0041\\/"', "\\u0041/", "\\u0041/"),
        ('"a\tb\x01"', "a\tb\x01", "a\tb\x01"),
        ("-0", 0, 0),
        ("1.50", 1.5, 1.5),
        ("1E3", 1000.0, 1000.0),
        ("[ 1 ,\n2 ]", [1, 2], [1, 2]),
        ('{"\\u0041":1}', {"A": 1}, {"\\u0041": 1}),
    ],
)
def test_reads(text: str, rpclib: Value, light: Value) -> None:
    """Each spelling gives the value that the daemon of that style would see, with the exact type."""
    for style, expected in ((RPCLIB, rpclib), (XAPI, rpclib), (LIGHT, light)):
        reply = decode_reply(result(text), style)
        assert reply == Success(expected)
        assert isinstance(reply, Success)
        assert type(reply.value) is type(expected)


def test_line_feeds_within_strings() -> None:
    """A raw line feed in a string is fine today and was an error then; between tokens and escaped it always passes."""
    raw = b'{"result":\n"a\nb","error":null,"id":0}'
    assert decode_reply(raw, RPCLIB) == Success("a\nb")
    with pytest.raises(NotJson, match="line feed"):
        decode_reply(raw, LIGHT)
    fine = b'{"result":\n"a\\"\\\\",\n"error":null,\n"id":0}\n"\n'
    assert decode_reply(fine, LIGHT) == Success('a"\\')
    assert decode_reply(result('"\\n"'), LIGHT) == Success("\n")


def test_what_follows_the_document() -> None:
    """Blanks may follow; other bytes are an error today, and were ignored then."""
    body = result("1")
    for style in STYLES.values():
        assert decode_reply(b" \r\n\t" + body + b" \r\n\t", style) == Success(1)
    assert decode_reply(body + b"}]x", LIGHT) == Success(1)
    for style in (RPCLIB, XAPI):
        with pytest.raises(NotJson, match=f"ends at offset {len(body) + 1}"):
            decode_reply(body + b" x", style)


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("9223372036854775808", NotJsonValue, "result: the integer 9223372036854775808 does not fit 64 bits"),
        ("[-9223372036854775809]", NotJsonValue, "result[0]: the integer -9223372036854775809"),
        ("9" * 6000, NotJsonValue, "the integer 9999"),
        ('{"a":[1,{"b":2,"c":3,"b":4}]}', DuplicateMember, "result.a[1]: member 'b' occurs twice"),
        ('["\\ud800"]', NotJsonValue, "result[0]: character U+D800 at offset 0 is half of a pair"),
        ('["x\\uDC00"]', NotJsonValue, "U+DC00 at offset 1"),
        ('{"\\ud800":1}', NotJsonValue, "U+D800"),
        ("01", NotJson, "offset 11"),
        ("1.", NotJson, "no JSON"),
        ("'a'", NotJson, "no JSON"),
        ("// no\n1", NotJson, "no JSON"),
        ("{a:1}", NotJson, "no JSON"),
        ('"\\x"', NotJson, "escape"),
        ("[1,]", NotJson, "no JSON"),
    ],
)
def test_refuses(text: str, error: type[CodecError], says: str) -> None:
    """Each wrong value is refused by its class, with its place and what is wrong with it."""
    with pytest.raises(error) as caught:
        decode_reply(result(text), RPCLIB)
    assert says in str(caught.value)


@pytest.mark.parametrize("style", STYLES)
def test_refuses_members_of_the_message_that_occur_twice(style: str) -> None:
    """Which of two methods is meant cannot be guessed."""
    with pytest.raises(DuplicateMember, match="'method' occurs twice"):
        decode_call(b'{"method":"a","params":[],"id":1,"method":"b"}', STYLES[style])


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"\xff",
        result('"\xff"').replace(b"\xc3\xbf", b"\xff"),
        b"\xed\xa0\x80",
        b"\xef\xbb\xbf" + result("1"),
    ],
)
def test_refuses_bytes_that_are_no_json(body: bytes) -> None:
    """Nothing, bytes outside UTF-8 and byte order marks are no JSON."""
    for style in STYLES.values():
        with pytest.raises(NotJson):
            decode_reply(body, style)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("depth", [65, 500, 200_000])
@pytest.mark.parametrize(("opens", "closes"), [("[", "]"), ('{"a":', "}")])
def test_refuses_deep_nesting(style: str, depth: int, opens: str, closes: str) -> None:
    """Values nested too deeply are refused without recursing into them."""
    body = f'{{"method":"a","params":[{opens * depth}1{closes * depth}],"id":1}}'.encode()
    with pytest.raises(Forbidden, match="nested too deeply"):
        decode_call(body, STYLES[style])


@pytest.mark.parametrize("style", STYLES)
def test_depth_counts_values_only_as_deep_as_allowed(style: str) -> None:
    """Sixty-four levels pass in both directions."""
    value: Value = "x"
    for _ in range(64):
        value = [value]
    assert decode_call(encode_call("a", [value], 1, STYLES[style]), STYLES[style])[1] == [value]
    with pytest.raises(Forbidden):
        encode_call("a", [[value]], 1, STYLES[style])


def test_limits_are_named() -> None:
    """Size and number of values have limits that the error names."""
    with pytest.raises(Forbidden, match="limit is 20"):
        decode_reply(result("1"), RPCLIB, Limits(size=20))
    with pytest.raises(Forbidden, match="more than 3 values"):
        decode_reply(result("[]"), RPCLIB, Limits(tags=3))
    with pytest.raises(Forbidden, match="nested"):
        decode_reply(result("[[[]]]"), RPCLIB, Limits(depth=1))


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ([2**63], "params[1].k[0]: the integer 0x8000000000000000 does not fit 64 bits"),
        ([-(2**63) - 1], "params[1].k[0]: the integer -0x8000000000000001"),
        ([10**6000], "params[1].k[0]: the integer 0x"),
        (["a\ud800"], "params[1].k[0]: character U+D800 at offset 1"),
        ([{"\udc00": 1}], "U+DC00"),
    ],
)
def test_refuses_to_write_what_json_cannot_carry(value: Value, says: str) -> None:
    """Values without a spelling are refused with their place, never bent."""
    for style in STYLES.values():
        with pytest.raises(NotJsonValue) as caught:
            encode_call("VM.add", ["fine", {"k": value}], 1, style)
        assert says in str(caught.value)


CALL = {"method": "a", "params": [1], "id": 5}


@pytest.mark.parametrize(
    ("changes", "rpclib", "light", "xapi"),
    [
        ({}, ReplyTo(5, 1), ReplyTo(5, 1), ReplyTo(5, 1)),
        ({"id": "x"}, ReplyTo("x", 1), None, ReplyTo("x", 1)),
        ({"id": 1.5}, None, None, ReplyTo(1.5, 1)),
        ({"id": None}, None, None, None),
        ({"id": True}, None, None, None),
        ({"id": [1]}, None, None, None),
        ({"id": ...}, None, None, None),
        ({"method": ...}, None, None, None),
        ({"method": 1}, None, None, None),
        ({"method": None}, None, None, None),
        ({"params": ...}, None, None, None),
        ({"params": {}}, None, None, None),
        ({"params": None}, None, None, None),
        ({"jsonrpc": "2.0"}, ReplyTo(5, 2), ReplyTo(5, 1), ReplyTo(5, 2)),
        ({"jsonrpc": "2.0", "params": {}}, ReplyTo(5, 2), None, ReplyTo(5, 2)),
        ({"jsonrpc": "2.0", "params": ...}, ReplyTo(5, 2), None, ReplyTo(5, 2)),
        ({"jsonrpc": "2.0", "params": None}, None, None, None),
        ({"jsonrpc": "2.0", "params": "x"}, None, None, None),
        ({"jsonrpc": "1.0"}, None, ReplyTo(5, 1), None),
        ({"jsonrpc": 2.0}, None, ReplyTo(5, 1), None),
        ({"more": 1}, ReplyTo(5, 1), ReplyTo(5, 1), ReplyTo(5, 1)),
    ],
    ids=str,
)
def test_what_makes_a_call(
    changes: dict[str, object], rpclib: ReplyTo | None, light: ReplyTo | None, xapi: ReplyTo | None
) -> None:
    """Which members a call needs, of which type, depends on the style; `...` stands for a missing one."""
    members = {name: value for name, value in {**CALL, **changes}.items() if value is not ...}
    body = json.dumps(members).encode()
    for style, expected in ((RPCLIB, rpclib), (LIGHT, light), (XAPI, xapi)):
        if expected is None:
            with pytest.raises(Malformed, match="expected"):
                decode_call(body, style)
        else:
            method, _, reply_to = decode_call(body, style)
            assert (method, reply_to) == ("a", expected)
            assert type(reply_to.id) is type(expected.id)


def test_named_parameters_are_one_struct() -> None:
    """In version 2 an object of parameters is a struct, the only parameter; without any there are none."""
    assert decode_call(b'{"jsonrpc":"2.0","method":"a","params":{"x":1},"id":1}', RPCLIB)[1] == [{"x": 1}]
    assert decode_call(b'{"jsonrpc":"2.0","method":"a","id":1}', XAPI)[1] == []


@pytest.mark.parametrize("body", [b"[]", b'[{"method":"a","params":[],"id":1}]'])
def test_refuses_batches_by_their_own_name(body: bytes) -> None:
    """An array of calls is no call, whatever is in it."""
    for style in STYLES.values():
        with pytest.raises(Batch, match="batches are not served"):
            decode_call(body, style)


@pytest.mark.parametrize(
    ("reply_to", "success", "failure"),
    [
        (
            ReplyTo(5, 1),
            '{"result":[],"error":null,"id":5}',
            '{"result":null,"error":["CODE","p"],"id":5}',
        ),
        (
            ReplyTo("x", 2),
            '{"jsonrpc":"2.0","result":[],"id":"x"}',
            '{"jsonrpc":"2.0","error":{"code":1,"message":"CODE","data":["p"]},"id":"x"}',
        ),
        (
            ReplyTo(1.0, 2),
            '{"jsonrpc":"2.0","result":[],"id":1.0}',
            '{"jsonrpc":"2.0","error":{"code":1,"message":"CODE","data":["p"]},"id":1.0}',
        ),
        (
            None,
            '{"jsonrpc":"2.0","result":[],"id":null}',
            '{"jsonrpc":"2.0","error":{"code":1,"message":"CODE","data":["p"]},"id":null}',
        ),
    ],
)
def test_replies_in_the_words_of_the_call(reply_to: ReplyTo | None, success: str, failure: str) -> None:
    """xapi answers in the call's version with its id; the services always with the id 0 in version 1."""
    assert encode_success(reply_to, [], XAPI).decode() == success
    assert encode_failure(reply_to, ["CODE", "p"], XAPI).decode() == failure
    assert decode_reply(success.encode(), XAPI) == Success([])
    assert decode_reply(failure.encode(), XAPI) == Failure(["CODE", "p"])
    assert encode_success(reply_to, [], RPCLIB) == b'{"result":[],"error":null,"id":0}'
    assert encode_failure(reply_to, "Domain_not_built", LIGHT) == (
        b'{"result": null, "error": "Domain_not_built", "id": 0}'
    )


def test_a_failure_of_version_2_begins_with_its_code() -> None:
    """Other descriptions have no place in an error object."""
    with pytest.raises(Malformed, match=r"expected a failure \[CODE"):
        encode_failure(ReplyTo(1, 2), {"a": 1}, XAPI)


@pytest.mark.parametrize(
    ("body", "reply"),
    [
        (b'{"result":null,"error":null,"id":0}', Success(None)),
        (b'{"id":"other","error":null,"result":false}', Success(False)),
        (b'{"result":null,"error":{"a":1},"id":0}', Failure({"a": 1})),
        (b'{"jsonrpc":"2.0","result":null,"id":1}', Success(None)),
        (b'{"jsonrpc":"2.0","error":{"code":-32700,"message":"Parse error"},"id":null}', Failure(["Parse error"])),
        (b'{"jsonrpc":"2.0","error":{"code":1,"message":"C","data":"d"},"id":1}', Failure(["C", "d"])),
        (b'{"result":1,"id":0}', None),
        (b'{"error":1,"id":0}', None),
        (b'{"result":1,"error":1,"id":0}', None),
        (b'{"jsonrpc":"2.0","id":1}', None),
        (b'{"jsonrpc":"2.0","result":1,"error":null,"id":1}', None),
        (b'{"jsonrpc":"2.0","error":"text","id":1}', None),
        (b'{"jsonrpc":"2.0","error":{"code":1},"id":1}', None),
        (b'{"jsonrpc":"3.0","result":1,"id":1}', None),
        (b'"text"', None),
    ],
)
def test_what_a_reply_says(body: bytes, reply: Success | Failure | None) -> None:
    """Replies of both versions are read, whatever their id; what says nothing or two things is no reply."""
    for style in STYLES.values():
        if reply is None:
            with pytest.raises(Malformed, match="expected"):
                decode_reply(body, style)
        else:
            assert decode_reply(body, style) == reply


TEXTS = st.text(
    st.one_of(st.characters(codec="utf-8"), st.sampled_from('\x00\x01\x1f\t\n\x7f\u2028"\\/u0041')), max_size=12
)
FLOATS = st.floats(allow_nan=False)


def values(floats: st.SearchStrategy[float]) -> st.SearchStrategy[Value]:
    scalars = st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**63 - 1), floats, TEXTS)
    return st.recursive(
        scalars,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
        max_leaves=12,
    )


@settings(max_examples=150, deadline=None)
@pytest.mark.parametrize("style", ["rpclib", "xapi"])
@given(value=values(FLOATS))
def test_values_survive(style: str, value: Value) -> None:
    """What is written is read as the same value, of the same type, in calls and replies."""
    call = encode_call("a.b", [value], 3, STYLES[style])
    assert repr(decode_call(call, STYLES[style])[:2]) == repr(("a.b", [value]))
    for reply_to in (ReplyTo(3, 1), ReplyTo("x", 2)):
        assert repr(decode_reply(encode_success(reply_to, value, STYLES[style]), STYLES[style])) == repr(Success(value))


@settings(max_examples=150, deadline=None)
@given(value=values(st.floats(allow_nan=False, allow_infinity=False)))
def test_values_survive_in_rpc_light(value: Value) -> None:
    """The old style carries the same values, but for numbers that are none."""
    assert repr(decode_call(encode_call("a.b", [value], 3, LIGHT), LIGHT)[:2]) == repr(("a.b", [value]))
    assert repr(decode_reply(encode_success(None, value, LIGHT), LIGHT)) == repr(Success(value))


@settings(max_examples=150, deadline=None)
@given(value=values(FLOATS))
def test_the_standard_library_reads_what_we_write(value: Value) -> None:
    """Python's json understands today's documents, those with bare infinities too."""
    assert repr(json.loads(encode_success(None, value, RPCLIB))["result"]) == repr(value)


@settings(max_examples=150, deadline=None)
@given(value=values(FLOATS), ascii_only=st.booleans(), indent=st.sampled_from([None, 1]))
def test_we_read_what_the_standard_library_writes(value: Value, ascii_only: bool, indent: int | None) -> None:
    """Python's documents are understood, escaped and indented or not."""
    body = json.dumps({"method": "a", "params": [value], "id": 1}, ensure_ascii=ascii_only, indent=indent)
    assert repr(decode_call(body.encode(), RPCLIB)[1]) == repr([value])


@settings(max_examples=200, deadline=None)
@given(body=st.binary(max_size=60) | st.text('{}[]",:\\u/0159.eE-ntrfals \n', max_size=80).map(str.encode))
def test_any_bytes_give_a_call_or_a_codec_error(body: bytes) -> None:
    """Nothing else ever leaves the codec."""
    for style in STYLES.values():
        with contextlib.suppress(CodecError):
            decode_call(body, style)
        with contextlib.suppress(CodecError):
            decode_reply(body, style)
