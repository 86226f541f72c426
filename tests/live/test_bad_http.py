"""Bad input at the HTTP door: the bridge answers as the legacy daemon does, in every stage, and goes on."""

from __future__ import annotations

import asyncio
import base64
import html
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.fixtures_host import Host

GOLDEN = Path(__file__).parents[1] / "golden" / "xmlrpc" / "xenopsd-http-errors.jsonl"


def call(method: str, *values: str) -> bytes:
    """A methodCall with the values' XML as it is."""
    params = "".join(f"<param><value>{value}</value></param>" for value in values)
    return f"<methodCall><methodName>{method}</methodName><params>{params}</params></methodCall>".encode()


# Bodies to which the legacy daemon, the relay and the translation give the same bytes.
SAME = {
    "malformed": b"<methodCall><methodName>login</methodNa",
    "not XML": b"hello",
    "no methodCall": b"<methodResponse/>",
    "empty": b"",
    "unknown type": call("login", "d", "<wibble>1</wibble>"),
    "unknown method": call("nosuch", "d"),
    "unknown method without params": b"<methodCall><methodName>nosuch</methodName></methodCall>",
    "argument missing": call("reserve_memory", "d", "s"),
    "all arguments missing": call("reserve_memory"),
    "integer out of range": call("reserve_memory", "d", "s", "9223372036854775808"),
    "integer is no number": call("reserve_memory", "d", "s", "seven"),
    "integer with blanks": call("reserve_memory", "d", "s", " 7"),
    "integer empty": call("reserve_memory", "d", "s", ""),
    "NUL": call("login", "d", "a\0b"),
    "control character": call("login", "d", "a&#1;b"),
    "invalid UTF-8": call("login", "d", "@").replace(b"@", b"\xff\xfe"),
    "amount refused": call("reserve_memory", "d", "s", "-1"),
    "unknown reservation": call("transfer_reservation_to_domain", "d", "s", "nosuch", "7"),
}  # fmt: skip
# The legacy daemon's own words depend on its types; ours are in the words of the recordings.
DIFFERENT = {
    "array for text": (call("login", "d", "<array><data></data></array>"), b"Expected string, got '[]'"),
    "struct for an integer": (call("reserve_memory", "d", "s", "<struct></struct>"), b"Expected int64, got '{}'"),
    "member twice": (
        call("login", "d", f"<struct>{2 * '<member><name>a</name><value>1</value></member>'}</struct>"),
        b"member 'a' occurs twice",
    ),
    "doctype": (b"<!DOCTYPE a [<!ENTITY e 'x'>]>" + call("login", "d", "&e;"), b""),
    "external entity": (b"<!DOCTYPE a [<!ENTITY e SYSTEM 'file:///etc/passwd'>]>" + call("login", "d", "&e;"), b""),
    "many tags": (b"<methodCall><methodName>login</methodName>" + b"<a>" * 5_000_000, b"more than 4000000 tags"),
    "very deep": (
        call("login", "d", "<array><data><value>" * 200 + "</value></data></array>" * 200),
        b"the limit is 64",
    ),
}
SPECIAL = {
    "GET": b"GET / HTTP/1.1\r\n\r\n",
    "no content-length": b"POST / HTTP/1.1\r\n\r\n",
    "content-length is no number": b"POST / HTTP/1.1\r\ncontent-length: abc\r\n\r\n<methodCall/>",
}


async def test_bad_calls_look_as_they_do_at_the_legacy_daemon(host: Host, callers) -> None:  # type: ignore[no-untyped-def]
    """off, relay and live: the same bytes for every bad call, and every door works after it."""
    await host.start_legacy("squeezed")
    await host.start_legacy("xenopsd")

    async def answers() -> dict[str, bytes]:
        found = {name: await callers.post("memory", body) for name, body in SAME.items()}
        return found | {name: await callers.raw(host.path("memory"), sent) for name, sent in SPECIAL.items()}

    legacy = await answers()
    assert legacy["malformed"] == legacy["unknown method"] == b""
    assert b"404" in legacy["GET"]
    assert b"Idl.MarshalError" in legacy["integer out of range"]
    await host.start_bridge()
    await host.stage("squeezed", "relay")
    await host.stage("xenopsd", "relay")
    relayed = await answers()
    await callers.every_door()
    await host.start_bus_squeezed()
    await host.stage("squeezed", "live")
    before = len(host.log("bridge"))
    live = await answers()
    assert {name: plain(reply) for name, reply in relayed.items()} == {
        name: plain(reply) for name, reply in legacy.items()
    }
    assert {name: plain(reply) for name, reply in live.items()} == {
        name: plain(reply) for name, reply in legacy.items()
    }
    log = host.log("bridge")[before:]
    for words in (
        "unreadable call",
        "unknown method nosuch",
        "kib: Expected int64, got (secret)",
        "reserve_memory at the http door: Declared: Invalid_memory_value",
    ):
        assert words in log
    assert "Traceback" not in host.log("bridge")
    await callers.every_door()


async def test_what_only_a_hardened_reader_refuses(moved) -> None:  # type: ignore[no-untyped-def]
    """live: entities, depth, numbers of tags and doubled members are refused, each with a line in the log."""
    for name, (body, expected) in DIFFERENT.items():
        before = len(moved.host.log("bridge"))
        reply = await moved.post("memory", body)
        assert (expected in html.unescape(reply.decode()).encode()) if expected else reply == b"", (name, reply)
        assert "at the http door: " in moved.host.log("bridge")[before:], name
    await moved.every_door()


@pytest.mark.parametrize("stage", ["relay", "live"])
async def test_a_body_over_the_limit(host: Host, relayed, stage: str) -> None:  # type: ignore[no-untyped-def]
    """100 MB, announced or sent: a Failure that names the limit; nothing is kept, the next call works."""
    if stage == "live":
        await host.start_bus_squeezed()
        await host.stage("squeezed", "live")
    head = b"POST / HTTP/1.1\r\ncontent-length: 104857600\r\n\r\n"
    for sent in (head, head + bytes(100 << 20)):
        reply = await relayed.raw(host.path("memory"), sent)
        assert b"104857600 bytes, the limit is 67108864" in reply, reply
    assert host.log("bridge").count("104857600 bytes, the limit is 67108864") == 2
    await relayed.every_door()


async def test_recorded_refusals_of_xenopsd(moved) -> None:  # type: ignore[no-untyped-def]
    """What xenopsd closed without a byte, the live door closes too; a GET has xenopsd's answer."""
    silent = 0
    for line in GOLDEN.read_text().splitlines():
        record = json.loads(line)
        request, response = base64.b64decode(record["request"]), base64.b64decode(record["response"])
        if request.startswith(b"GET") or not response:
            reply = await moved.raw(moved.host.path("memory"), request, half_close=True)
            assert plain(reply) == plain(response), record["exchange"]
            silent += not response
    assert silent > 5
    await moved.every_door()


async def test_a_caller_who_leaves_in_the_middle(moved) -> None:  # type: ignore[no-untyped-def]
    """Half a head, half a body: the connection ends and nothing is executed."""
    body = call("login", "d", "half")
    whole = b"POST / HTTP/1.1\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
    for length in (3, 20, len(whole) - 1):
        _, writer = await asyncio.open_unix_connection(str(moved.host.path("memory")))
        writer.write(whole[:length])
        writer.close()
        await writer.wait_closed()
    await moved.every_door()
    assert moved.host.executions()["login", "half"] == 0


def plain(reply: bytes) -> bytes:
    """A reply without the headers that differ from daemon to daemon."""
    return re.sub(rb"(?im)^(user-agent|content-type|connection|content-length):[^\n]*\n", b"", reply)
