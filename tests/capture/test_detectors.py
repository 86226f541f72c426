"""Detectors see what redaction should have taken, say where and not what, and are silent about ordinary captures."""

from __future__ import annotations

import base64
import json
import re
from functools import cache
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import escape

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bridges.capture import detectors, typed
from bridges.capture.records import Fault, Leg, Reply, Request, encode
from bridges.capture.redaction import Redactor
from bridges.interfaces.model import Method, available, load
from tests.bridges.fidelity_forms import forms
from tests.bridges.fidelity_types import arguments_of
from tests.bridges.fidelity_values import values

REDACTOR = Redactor(b"a key of the tests")
SESSION = "OpaqueRef:0b9f4c1e-7b1d-4a51-9d0e-2f6a3c8e5d71"
VM = "OpaqueRef:1c8e2d3f-6a4b-4c5d-8e9f-0a1b2c3d4e5f"
TOKEN = REDACTOR.token(SESSION)
PASSWORD = "correct horse"
LOGIN = "session.login_with_password"
BASIC = base64.b64encode(b"root:correct horse").decode()


def line(**members: Any) -> bytes:
    """A line of a capture that has these members."""
    return json.dumps({"t": "req", "seq": 1, "service": "xapi"} | members).encode()


def xml(name: str, *params: str) -> str:
    """A call in XML whose arguments are texts."""
    given_ones = "".join(f"<param><value><string>{escape(p)}</string></value></param>" for p in params)
    return f"<methodCall><methodName>{name}</methodName><params>{given_ones}</params></methodCall>"


@pytest.mark.parametrize(
    ("members", "what"),
    [
        ({"arguments": {"pwd": PASSWORD}}, "a value with a telling name at arguments.pwd"),
        ({"arguments": {"a": {"wlb_password": PASSWORD}}}, "a value with a telling name at arguments.a.wlb_password"),
        ({"arguments": {"secrets": [["x"], [PASSWORD]]}}, "a value with a telling name at arguments.secrets[*][*]"),
        ({"arguments": {"session_id": SESSION}}, "a session at arguments.session_id"),
        ({"arguments": {"dest": {"session": SESSION}}}, "a session at arguments.dest.session"),
        ({"note": f"see /SM?session_id={quote(SESSION, safe='')}"}, "a value beside a telling name at note"),
        ({"note": f"--password={PASSWORD}"}, "a value beside a telling name at note"),
        ({"note": "-----BEGIN RSA PRIVATE KEY-----\nMII"}, "a private key at note"),
        ({"note": "x eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJ4ZW4ifQ.c2ln"}, "a JWT at note"),
        ({"note": f"Basic {BASIC}"}, "Basic credentials at note"),
        ({"note": "bearer abcdefgh12345678"}, "a Bearer token at note"),
        ({"note": "smb://user:horse@host/share"}, "a password in a URL at note"),
        ({"note": "/".join([SESSION.removeprefix("OpaqueRef:")] * 3)}, "a pool secret at note"),
        ({"native": {"headers": [["Host", "h"], ["Cookie", "a=b"]]}}, "telling name at native.headers.Cookie"),
        ({"native": {"body": xml("VM.start", SESSION, VM)}}, "a session at native.body"),
        ({"native": {"body": xml(LOGIN, "root", PASSWORD)}}, "an argument that is a secret at native.body.params[1]"),
        ({"native": {"body": f"<name>password</name><value>{PASSWORD}</value>"}}, "telling name at native.body"),
        ({"native": {"body": json.dumps({"params": [{"pwd": PASSWORD}]})}}, "at native.body (json).params[*].pwd"),
        ({"native": {"body": json.dumps({"method": "VM.start", "params": [SESSION]})}}, "native.body (json).params[0]"),
        ({"native": {"body": [SESSION, VM]}}, "a session at native.body[0]"),
        ({"native": {"b64": base64.b64encode(b"<name>pwd</name><value>x</value>").decode()}}, "at native.* (base64)"),
        ({"t": "rsp", "method": "session.login_with_password", "result": SESSION}, "a session at result"),
        ({"t": "rsp", "fault": {"argument": [["session", SESSION]]}}, "a session at fault.argument.session"),
    ],
)  # fmt: skip
def test_what_is_found(members: dict[str, Any], what: str) -> None:
    found = detectors.find(line(**members))
    assert len(found) == 1, found
    assert found[0].endswith(what)
    for secret in (PASSWORD, SESSION, BASIC, "horse", "abcdefgh", "a=b"):
        assert secret not in found[0]


@pytest.mark.parametrize(
    "members",
    [
        {"arguments": {"pwd": "(secret)", "session_id": TOKEN, "new": {"token": "(undeclared)"}}},
        {"arguments": {"token": "00000000000000000012,00000000000000000345", "classes": ["secret", "VM"]}},
        {"arguments": {"self": VM, "password_secret": VM, "token_timeout": "20000", "pwd": ""}},
        {"redacted": ["arguments.pwd", "arguments.session_id"], "name": "session.login_with_password"},
        {"service": "squeezed", "arguments": {"session_id": "7"}, "native": {"nodes": [["session_id", "7"]]}},
        {"native": {"line": "POST /SM?session_id=(secret)&uuid=1", "headers": [["Cookie", "(secret)"]]}},
        {"native": {"body": xml("session.login_with_password", "root", "(secret)")}},
        {"native": {"body": xml("VM.start", TOKEN, VM)}},
        {"native": {"body": f"<name>session_id</name><value>{TOKEN}</value><name>pwd</name><value>(secret)</value>"}},
        {"native": {"body": json.dumps({"method": "VM.start", "params": [TOKEN, VM]})}},
        {"note": f"smb://user:(secret)@host, password=(secret), session_id={TOKEN}"},
        {"t": "rsp", "method": "VM.create", "result": VM, "native": {"body": [VM]}},
        {"arguments": {"extra_private_keys": [["polling", "1"]]}, "native": {"body": '"extra_private_keys": [1]'}},
        {"note": "Basic configuration; the bearer of 2 tokens; http://10.0.0.1:80/a@b"},
        {"t": "hdr", "redaction": "97a5bcfbcbd4c920", "key": "c30331befb7bc881", "interfaces": {"xapi": "0" * 64}},
    ],
)
def test_what_is_none(members: dict[str, Any]) -> None:
    assert detectors.find(line(**members)) == []


def test_lines_that_are_no_json() -> None:
    assert detectors.find(b"\xff password=horse\n") == ["a value beside a telling name at the line"]
    assert detectors.find(b"") == []
    assert detectors.find(b"[" * 100_000) == []


def test_a_long_line_takes_no_time_to_speak_of() -> None:
    """Texts that bring expressions into trouble, of a megabyte."""
    for text in (
        "a" * 1_000_000,
        "pass" * 250_000,
        '"password":' * 90_000,
        "://" * 300_000,
        "eyJ" * 300_000,
        "pwd>" * 250_000,
    ):
        detectors.find(line(note=text))
        REDACTOR.text(text)


# --- ordinary captures -----------------------------------------------------------------------------------------------


@cache
def interface(stem: str) -> tuple[Method, ...]:
    """Methods of an interface: all, of xapi every twentieth and those that log in."""
    found = load(stem).methods()
    return found if len(found) < 500 else (*found[::20], *(m for m in found if m.object == "session"))


@pytest.mark.parametrize("stem", available())
@settings(max_examples=40, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_redacted_records_are_silent(stem: str, data: st.DataObject) -> None:
    """Random calls of every interface, typed and in their protocol's words, with sessions and passwords in them."""
    service, each = load(stem), data.draw(st.sampled_from(interface(stem)))
    given_ones = data.draw(arguments_of(each))
    given_ones |= {p.name: SESSION for p in each.parameters if p.name == "session_id" and stem == "xapi"}
    given_ones |= {p.name: PASSWORD for p in each.parameters if p.secret and getattr(p.type, "name", "") == "string"}
    asked = REDACTOR.arguments(service, each, given_ones)
    answered = REDACTOR.result(service, each, data.draw(values(each.result)), asked.secrets)
    form = next(iter(forms(stem)))
    written = form.of(each)
    request = Request(
        seq=1, id="a", leg=Leg.CALLER, ts="1", mono="1", service=service.name, door="http", name=each.name,
        method=each.name, arguments=typed.write_arguments(each, asked.value), redacted=asked.paths,
        native={"body": form.encoding.write_call(each.name, written.write_arguments(asked.value)).decode()},
    )  # fmt: skip
    reply = Reply(
        seq=2, id="a", leg=Leg.CALLER, ts="2", mono="2", service=service.name, door="http", re=1, us=1,
        outcome="answered", method=each.name, result=typed.write(each.result, answered.value), redacted=answered.paths,
        native={"body": form.encoding.write_success(None, written.write_result(answered.value)).decode()},
    )  # fmt: skip
    assert detectors.find(encode(request)) == []
    assert detectors.find(encode(reply)) == []


def test_an_unredacted_login_is_not_silent() -> None:
    """The same records without redaction, so that the silence above means something."""
    login = load("xapi").method("session.login_with_password")
    assert login is not None
    request = Request(
        seq=1, id="a", leg=Leg.CALLER, ts="1", mono="1", service="xapi", door="http", name=login.name,
        method=login.name, arguments=typed.write_arguments(login, {"uname": "root", "pwd": PASSWORD}),
        native={"body": xml(login.name, "root", PASSWORD)},
    )  # fmt: skip
    assert len(detectors.find(encode(request))) == 2
    fault = Fault("Declared", "SESSION_INVALID", f"session_id={SESSION}")
    reply = Reply(
        seq=2, id="a", leg=Leg.CALLER, ts="2", mono="2", service="xapi", door="http", re=1, us=1, outcome="fault",
        method=login.name, result=SESSION, fault=fault,
    )  # fmt: skip
    assert len(detectors.find(encode(reply))) == 2


# --- canaries --------------------------------------------------------------------------------------------------------

CANARY = "Zq7!/k \"<é>&'+p"


@pytest.mark.parametrize(
    ("encoding", "blob"),
    [
        ("plain", CANARY.encode()),
        ("URL-encoded", quote(CANARY, safe="").encode()),
        ("URL-encoded", quote(CANARY).encode()),
        ("URL-encoded", re.sub("%..", lambda found: found[0].lower(), quote(CANARY, safe="")).encode()),
        ("URL-encoded", "".join(f"%{b:02X}" for b in CANARY.encode()).encode()),
        ("JSON-escaped", json.dumps(CANARY).encode()),
        ("JSON-escaped", json.dumps(CANARY, ensure_ascii=False).encode()),
        ("XML-escaped", escape(CANARY).encode()),
        ("XML-escaped", escape(CANARY, {'"': "&quot;", "'": "&apos;"}).encode()),
        ("XML-escaped", "".join(f"&#{ord(c)};" for c in CANARY).encode()),
        ("hex", CANARY.encode().hex().encode()),
        ("hex", CANARY.encode().hex().upper().encode()),
        ("base64", base64.b64encode(CANARY.encode())),
        ("base64", base64.b64encode(b"r" + CANARY.encode() + b"zz")),
        ("base64", base64.urlsafe_b64encode(b"ro" + CANARY.encode())),
        ("UTF-16 LE", CANARY.encode("utf-16-le")),
        ("UTF-16 BE", CANARY.encode("utf-16-be")),
        ("reversed", CANARY[::-1].encode()),
        ("rot13", b"Md7!/x \"<\xc3\xa9>&'+c"),
    ],
)
def test_a_canary_in_every_encoding(encoding: str, blob: bytes) -> None:
    assert detectors.find_canary(b"before " + blob + b" after", CANARY) == [encoding]


def test_no_canary() -> None:
    assert detectors.find_canary(b"nothing of it" * 100, CANARY) == []
    assert detectors.find_canary(b"a plain-canary", "plain-canary") == ["plain"]


@given(st.text(min_size=6, max_size=20), st.binary(max_size=5), st.binary(max_size=5))
@settings(max_examples=100, derandomize=True, database=None, deadline=None)
def test_a_canary_in_base64_at_any_place(canary: str, before: bytes, after: bytes) -> None:
    try:
        plain = canary.encode()
    except UnicodeEncodeError:
        return
    blob = base64.b64encode(before + plain + after)
    assert "base64" in detectors.find_canary(blob, canary)
