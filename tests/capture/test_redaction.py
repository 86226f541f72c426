"""What must never reach a disk: by the interface, by name, by itself, by an earlier find; all else stays as it was."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from bridges import handles
from bridges.calls import Tagged
from bridges.capture import rules, typed
from bridges.capture.redaction import SECRET, Redacted, Redactor, is_token
from bridges.capture.rules import UNDECLARED
from bridges.faults import Fault, Kind
from bridges.interfaces.model import (
    Basic,
    DictOf,
    HandleForm,
    ListOf,
    Method,
    Option,
    Record,
    RecordOf,
    Service,
    TupleOf,
    Type,
    Union,
    available,
    bare,
    load,
)
from tests.bridges.fidelity_types import arguments_of, arguments_survive, type_survives
from tests.bridges.fidelity_values import same, values

REDACTOR = Redactor(b"a key of the tests")
SESSION = "OpaqueRef:0b9f4c1e-7b1d-4a51-9d0e-2f6a3c8e5d71"
VM = "OpaqueRef:1c8e2d3f-6a4b-4c5d-8e9f-0a1b2c3d4e5f"
TOKEN = REDACTOR.token(SESSION)
PASSWORD = "hunter2-%&<é>\"'"
POOL_SECRET = "/".join([SESSION.removeprefix("OpaqueRef:")] * 3)
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJ4ZW4ifQ.c2lnbmF0dXJl"
PEM = "-----BEGIN RSA PRIVATE KEY-----\nMIIEowIBAAKCAQEA\n-----END RSA PRIVATE KEY-----"
NOTHING: frozenset[str] = frozenset()


def method(service: str, name: str) -> tuple[Service, Method]:
    """A method, with its service."""
    found = load(service).method(name)
    assert found is not None, f"{service} has no {name}"
    return load(service), found


def arguments(service: str, name: str, **given: Any) -> Redacted:
    """The redacted arguments of a call, which can still be written and read."""
    of_service, of_method = method(service, name)
    redacted = REDACTOR.arguments(of_service, of_method, given)
    known = {p.name for p in of_method.parameters}
    written = typed.write_arguments(of_method, redacted.value)
    assert same(typed.read_arguments(of_method, written), {k: v for k, v in redacted.value.items() if k in known})
    return redacted


def result(service: str, name: str, value: Any, secrets: frozenset[str] = NOTHING) -> Redacted:
    """The redacted result of a call, which can still be written and read."""
    of_service, of_method = method(service, name)
    redacted = REDACTOR.result(of_service, of_method, value, secrets)
    assert same(typed.read(of_method.result, typed.write(of_method.result, redacted.value)), redacted.value)
    return redacted


# --- by the interface ------------------------------------------------------------------------------------------------


def test_a_login_keeps_who_but_not_the_password() -> None:
    found = arguments("xapi", "session.login_with_password", uname="root", pwd=PASSWORD, version="1", originator="me")
    assert found.value == {"uname": "root", "pwd": SECRET, "version": "1", "originator": "me"}
    assert found.paths == ["arguments.pwd"]
    assert found.secrets == {PASSWORD}
    assert result("xapi", "session.login_with_password", SESSION).value == TOKEN


def test_sessions_become_tokens_and_other_references_stay() -> None:
    found = arguments("xapi", "VM.start", session_id=SESSION, vm=VM, start_paused=False, force=True)
    assert found.value == {"session_id": TOKEN, "vm": VM, "start_paused": False, "force": True}
    assert found.paths == ["arguments.session_id"]
    assert is_token(TOKEN)
    assert handles.is_reference(TOKEN)


@pytest.mark.parametrize("nothing", ["", "OpaqueRef:NULL"])
def test_no_session_is_no_secret(nothing: str) -> None:
    assert arguments("xapi", "VM.get_all", session_id=nothing).paths == []


def test_a_session_where_another_reference_belongs_is_found_out() -> None:
    assert arguments("xapi", "VM.get_record", session_id=SESSION, self=SESSION).value["self"] == TOKEN
    again = result("xapi", "VM.get_resident_on", SESSION, frozenset({SESSION}))
    assert (again.value, again.paths) == (TOKEN, ["result"])


def test_events_show_neither_sessions_nor_secrets() -> None:
    events = [
        {"class": "session", "ref": SESSION, "snapshot": {"uuid": "u", "parent": SESSION}},
        {"class": "Secret", "ref": VM, "snapshot": {"uuid": "u", "value": PASSWORD}},
        {"class": "vm", "ref": VM, "snapshot": {"uuid": "u", "resident_on": VM}},
        {"class": "unheard_of", "ref": VM, "snapshot": {"uuid": PASSWORD, "count": 3}},
    ]
    found = result("xapi", "event.from", {"events": events, "valid_ref_counts": {}, "token": "0123,0456"})
    assert found.value["token"] == "0123,0456"
    assert found.value["events"] == [
        {"class": "session", "ref": TOKEN, "snapshot": {"uuid": "u", "parent": TOKEN}},
        {"class": "Secret", "ref": VM, "snapshot": {"uuid": "u", "value": SECRET}},
        events[2],
        {"class": "unheard_of", "ref": VM, "snapshot": {"uuid": UNDECLARED, "count": 3}},
    ]
    assert sorted(found.paths) == [
        "result.events[*].ref",
        "result.events[*].snapshot.parent",
        "result.events[*].snapshot.uuid",
        "result.events[*].snapshot.value",
    ]


def test_other_handles_stay() -> None:
    assert arguments("squeezed", "reserve_memory", session_id="0", kib=1).paths == []
    assert arguments("squeezed", "delete_reservation", session_id="0", reservation_id="a1b2c3").paths == []
    assert arguments("xenopsd", "Task.stat", debug_info="d", id="17").paths == []
    assert arguments("xapi", "event.from", session_id="", classes=["*"], token="1,2", timeout=1.0).paths == []


@pytest.mark.parametrize("stem", available())
def test_every_place_of_a_credential_is_redacted_and_of_other_handles_is_not(stem: str) -> None:
    """As `handles` finds the places, which does so by other means."""
    service = load(stem)
    credentials = {kind for kind, form in service.handles.items() if form is HandleForm.REFERENCE}
    other, of_class = {"cursor": "12,34"}, VM if stem == "xapi" else "17"
    checked = 0
    for each in service.methods():
        for place, kind in each.consumes.items():
            if "." not in place:
                there = SESSION if kind in credentials else other.get(kind, of_class)
                found = REDACTOR.arguments(service, each, {place: there}).value[place]
                assert found == (TOKEN if kind in credentials else there), f"{each.name} {place}"
                checked += 1
        for place, kind in each.produces.items():
            if place == "result" and isinstance(each.result, Basic):
                there = SESSION if kind in credentials else other.get(kind, of_class)
                of_number = each.result.name != "string"
                found = REDACTOR.result(service, each, 17 if of_number else there, NOTHING).value
                assert found == (17 if of_number else TOKEN if kind in credentials else there), f"{each.name} result"
                checked += 1
    assert checked or not any(m.consumes or m.produces for m in service.methods())


# --- what the marks do not cover -------------------------------------------------------------------------------------

LEAKS: list[tuple[str, str, dict[str, Any]]] = [
    ("xapi", "session.change_password", {"old_pwd": PASSWORD, "new_pwd": PASSWORD}),
    ("xapi", "pool.join", {"master_address": "m", "master_username": "root", "master_password": PASSWORD}),
    ("xapi", "Async.pool.join", {"master_address": "m", "master_username": "root", "master_password": PASSWORD}),
    ("xapi", "pool.initialize_wlb", {"wlb_password": PASSWORD, "xenserver_password": PASSWORD}),
    ("xapi", "VM.import_convert", {"type": "x", "password": PASSWORD, "remote_config": {"pass": PASSWORD}}),
    ("xapi", "host.install_server_certificate", {"certificate": "c", "private_key": PASSWORD}),
    ("xapi", "host.set_power_on_mode", {"power_on_config": {"power_on_password_secret": PASSWORD}}),
    ("xapi", "SR.create", {"device_config": {"cifspassword": PASSWORD}, "sm_config": {"chappassword": PASSWORD}}),
    ("xapi", "PBD.create", {"args": {"device_config": {"anything": PASSWORD}}}),
    ("xapi", "PBD.set_device_config", {"value": {"anything": PASSWORD}}),
    ("storage", "SR.attach", {"device_config": {"chappassword": PASSWORD}}),
    ("xapi", "pool.enable_external_auth", {"config": {"domain": "d", "pass": PASSWORD}}),
    ("xapi", "host.create", {"external_auth_configuration": {"user": "u", "pass": PASSWORD}}),
    ("xapi", "VM.migrate_send", {"dest": {"session_id": SESSION}}),
    ("xapi", "VM.migrate_send", {"dest": {"SM": f"http://10.0.0.1/services/SM?session_id={SESSION}"}}),
    ("xapi", "VM.migrate_send", {"dest": {"x": f"http://h/services/xenops?session_id={quote(SESSION, safe='')}"}}),
    ("xenopsd", "VM.migrate", {"xenops_url": f"http://h/services/xenops?session_id={SESSION}"}),
    ("xapi", "VM.set_xenstore_data", {"value": {"vm-data/admin-password": PASSWORD}}),
    ("xapi", "VM.add_to_xenstore_data", {"key": "vm-data/adminPassword", "value": PASSWORD}),
    ("xapi", "VM.add_to_other_config", {"key": "cifs_pwd", "value": PASSWORD}),
    ("storage", "VDI.add_to_sm_config", {"key": "chap-secret", "value": PASSWORD}),
    ("xenopsd", "VM.set_xsdata", {"xsdata": {"vm-data/user-data": PASSWORD}}),
    ("xenopsd", "VM.run_script", {"script": f"net user admin {PASSWORD}"}),
    ("xapi", "secret.introduce", {"value": PASSWORD}),
    ("xapi", "secret.create", {"args": {"value": PASSWORD}}),
    ("xapi", "host.call_plugin", {"args": {"ssh_key": PASSWORD, "token": PASSWORD}}),
    ("rrdd", "migrate_rrd", {"session_id": SESSION}),
    ("rrdd", "send_host_rrd_to_master", {"master_address": f"https://root:{quote(PASSWORD)}@10.0.0.1/rrd"}),
    ("storage", "DATA.copy", {"url": f"http://u:{quote(PASSWORD)}@h/services/SM?session_id={SESSION}", "dest": "d"}),
    ("xapi", "pool.sync_updates", {"token": PASSWORD, "token_id": PASSWORD, "password": PASSWORD}),
]


@pytest.mark.parametrize(("service", "name", "given_ones"), LEAKS, ids=lambda value: str(value)[:40])
def test_arguments_that_no_mark_covers(service: str, name: str, given_ones: dict[str, Any]) -> None:
    found = arguments(service, name, **given_ones)
    for secret in (PASSWORD, quote(PASSWORD), SESSION, quote(SESSION, safe="")):
        assert secret not in repr(found.value)
        assert secret not in json.dumps(found.value, ensure_ascii=False)
    assert found.paths
    assert found.secrets


@pytest.mark.parametrize(
    ("service", "name", "value"),
    [
        ("xapi", "secret.get_value", PASSWORD),
        ("xapi", "secret.get_record", {"uuid": "u", "value": PASSWORD, "other_config": {}}),
        ("xapi", "pool.initial_auth", PASSWORD),
        ("xapi", "Cluster.get_cluster_token", PASSWORD),
        ("xapi", "Cluster.get_record", {"cluster_token": PASSWORD}),
        ("xapi", "PBD.get_all_records", {VM: {"device_config": {"a": PASSWORD}}}),
        ("xapi", "host.get_power_on_config", {"power_on_password": PASSWORD}),
        ("xapi", "host.migrate_receive", {"session_id": SESSION, "SM": f"http://h/SM?session_id={SESSION}"}),
        ("xapi", "session.get_record", {"parent": SESSION}),
        ("xapi", "task.get_result", f"<value>{SESSION}</value>"),
        ("xapi", "VTPM.get_contents", PASSWORD),
        ("xapi", "VM.get_all_records", {VM: {"xenstore_data": {"vm-data/pwd": PASSWORD}}}),
        ("xapi", "pool.get_all_records", {VM: {"repository_proxy_password": PASSWORD}}),
        ("cluster", "create", PASSWORD),
    ],
    ids=lambda value: str(value)[:40],
)
def test_results_that_no_mark_covers(service: str, name: str, value: Any) -> None:
    found = result(service, name, value)
    assert PASSWORD not in repr(found.value)
    assert SESSION not in repr(found.value)
    assert found.paths


# --- names, against an independent list ------------------------------------------------------------------------------

BROAD = re.compile(
    "pass|pwd|secret|token|cookie|auth|cred|chap|key|session|sas|pin|psk|ps$|cert|login|ticket|nonce|salt|otp|unattend"
    "|sysprep|licen[cs]e|script|private|sign|bearer|jwt|user_?data|answer",
    re.IGNORECASE,
)
HARMLESS = {
    # no words of their own: apPINg, asSIGned, CHAPter-like accidents
    "assigned_ips", "get_assigned_ips", "crash_dumps", "get_crash_dumps", "crashdumps", "get_crashdumps", "description",
    "get_description", "name_description", "get_name_description", "new_name_description", "groups", "get_groups",
    "enabled_on_GPU_groups", "get_enabled_on_GPU_groups", "supported_on_GPU_groups", "get_supported_on_GPU_groups",
    "stepping", "get_stepping",
    # handles of one process, no credentials: squeezed gives one to each service, xapi's is a position in its events
    "login", "session_id", "token",
    # who, not how
    "auth_type", "auth_user_name", "get_auth_user_name", "auth_user_sid", "get_auth_user_sid",
    "client_certificate_auth_name", "get_client_certificate_auth_name", "external_auth_type", "get_external_auth_type",
    "external_auth_service_name", "get_external_auth_service_name",
    # maps, searched by the names of their keys
    "external_auth_configuration", "get_external_auth_configuration", "extra_private_keys",
    # public by their nature; a private key beside one is found as PEM
    "cert", "cert_distrib_atom", "certificate", "certificate_chain", "certificate_list", "certificates",
    "get_certificate", "get_certificates", "get_server_certificate", "remote_certificate", "custom_uefi_certificates",
    "get_custom_uefi_certificates", "uefi_certificates", "get_uefi_certificates", "exchange_ca_certificates_on_join",
    "exchange_certificates_on_join", "exchange_trusted_certificates_on_join", "sync_trusted_certificates_from",
    # which edition, until when
    "license_params", "get_license_params", "license_server", "get_license_server", "get_license_state",
    # names of things, keys of maps and of keyboards
    "key", "keys", "keymap", "debug_keys", "extra_backend_keys", "get_key", "gpgkey_path", "get_gpgkey_path",
    # the id of a task; the script itself is an argument
    "run_script",
}  # fmt: skip
_CANARY = "plain"


def texts(kind: Type, name: str, whole: Callable[[Any], Any], seen: set[int]) -> Iterator[tuple[str, Any]]:
    """Every text below a type that is not written `seen` yet: its name, and the least value with a canary there."""
    match kind:
        case Basic("string" | "any"):
            yield name, whole(_CANARY)
        case Option(item):
            yield from texts(item, name, whole, seen)
        case ListOf(item):
            yield from texts(item, name, lambda value: whole([value]), seen)
        case TupleOf(items):
            for at, item in enumerate(items):
                rest = [None] * len(items)
                yield from texts(item, name, lambda v, n=at, r=rest: whole((*r[:n], v, *r[n + 1 :])), seen)
        case DictOf(item):
            yield from texts(item, name, lambda value: whole({"1": value}), seen)
        case Record() | Union() if id(kind) not in seen:
            seen.add(id(kind))
            yield from inner_texts(kind, whole, seen)


def inner_texts(kind: Record | Union, whole: Callable[[Any], Any], seen: set[int]) -> Iterator[tuple[str, Any]]:
    """The same for members and cases, which have names of their own."""
    if isinstance(kind, Record):
        for field in kind.fields:
            yield from texts(bare(field.type), field.name, lambda v, n=field.name: whole({n: v}), seen)
        return
    for case in kind.constructors:
        if case.argument is not None:
            yield from texts(case.argument, case.name, lambda v, n=case.name: whole(Tagged(n, v)), seen)


@pytest.mark.parametrize("stem", available())
def test_every_text_with_a_telling_name_is_redacted_or_known_to_be_harmless(stem: str) -> None:
    service, seen, looked_at = load(stem), set[int](), 0
    leaks: dict[str, str] = {}
    for each in service.methods():
        given_ones = [text for p in each.parameters for text in texts(p.type, p.name, lambda v, n=p.name: {n: v}, seen)]
        outcomes = [
            (name, REDACTOR.arguments(service, each, value).value) for name, value in given_ones if BROAD.search(name)
        ]
        outcomes += [
            (name, REDACTOR.result(service, each, value, NOTHING).value)
            for name, value in texts(each.result, each.member, lambda value: value, seen)
            if BROAD.search(name) and not each.name.startswith("Async.")
        ]
        looked_at += len(outcomes)
        leaks |= {name: each.name for name, value in outcomes if _CANARY in repr(value) and name not in HARMLESS}
    assert leaks == {}
    assert looked_at or stem in ("gpumon", "networkd", "perfmon", "v6d")


@pytest.mark.parametrize(
    "name",
    ["password", "passwd", "oldPwd", "new_pwd", "cifspassword", "chappassword", "incoming_chapuser", "passphrase",
     "pass", "user_pass", "secret", "psecret", "pool_secret", "token", "cluster_token", "authToken", "cookie",
     "authorization", "credentials", "creds", "private_key", "apiKey", "api-key", "session_id", "sessionId", "session",
     "remote_session", "SAS", "sig", "device_config",
     "vm-data/admin-password", "authkey", "user_data", "cloud-init", "pin"],
)  # fmt: skip
def test_names_of_secrets(name: str) -> None:
    assert rules.is_secret_name(name)


@pytest.mark.parametrize(
    "name",
    ["keymap", "other_config", "key", "keys", "publickey", "public_key", "passthrough_enabled", "bypass", "compass",
     "sm_config", "auth_user_name", "external_auth_type", "session_count", "gpgkey_path", "token_timeout", "spindle",
     "chapter", "sasl_host", "author", "snapshot", "VCPU_pin"],
)  # fmt: skip
def test_harmless_names(name: str) -> None:
    assert not rules.is_secret_name(name)


# --- texts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"before {PEM} after", "before (secret) after"),
        (PEM[:60], SECRET),  # cut short by who reported it
        (f"jwt {JWT}.", "jwt (secret)"),
        ("Basic " + base64.b64encode(b"root:pw").decode(), "Basic (secret)"),
        ("Bearer abc123def456", "Bearer (secret)"),
        ("https://root:pa@ss/w@host/x", "https://root:(secret)@host/x"),
        ("https://0123456789abcdefghijk@host/x", "https://(secret)@host/x"),
        (f"/x?session_id={SESSION}&y=1", f"/x?session_id={TOKEN}&y=1"),
        ("/x?pool_secret=abc&y=1", "/x?pool_secret=(secret)&y=1"),
        ("user=x password=abc,d", "user=x password=(secret)"),
        ('{"password": "a\\"b", "x": 1}', '{"password": "(secret)", "x": 1}'),
        (r"{\"password\":\"a b\"}", r"{\"password\":\"(secret)\"}"),
        ("<password>a b</password>", "<password>(secret)</password>"),
        ("<name>pwd</name>\n<value><string>a b</string>", "<name>pwd</name>\n<value><string>(secret)</string>"),
        ("(('password' 'a b'))", "(('password' '(secret)'))"),
        ("{password:S(a;b);type:S(c)}", "{password:S((secret));type:S(c)}"),
        (f"Session {SESSION} is gone", f"Session {TOKEN} is gone"),
        (f"x {POOL_SECRET}", "x (secret)"),
        ("a Xk29dkQ0aLm3Zp81nQr5Tt7u b", "a (secret) b"),
        (base64.b64encode(bytes(range(7, 250, 3))).decode(), SECRET),
    ],
)
def test_texts_that_hold_a_secret(text: str, expected: str) -> None:
    assert REDACTOR.text(text) == expected
    assert REDACTOR.text(expected) == expected
    found = result("xapi", "task.get_other_config", {"k": text})
    assert (found.value, found.paths) == ({"k": expected}, ["result{*}"])


@pytest.mark.parametrize(
    "text",
    [
        "", "Debian Bullseye 11", "Basic configuration of a host", "http://10.0.0.1:80/path/a@b", "https://host/x?uuid=1",
        SESSION.removeprefix("OpaqueRef:"), "OpaqueRef:NULL", "0" * 40, "d41d8cd98f00b204e9800998ecf8427e" * 2,
        "1fcbfbff-f7fa3223-2d93fbff-00000523-00000000-00000000", "00000000000000000012,00000000000000000345",
        "CentOS-7-x86_64-Minimal-2009-GenericCloud", "VG_XenStorage-0b9f4c1e-7b1d-4a51-9d0e-2f6a3c8e5d71",
        "/var/run/sr-mount/0b9f4c1e-7b1d-4a51-9d0e-2f6a3c8e5d71/1c8e2d3f-6a4b-4c5d-8e9f-0a1b2c3d4e5f.vhd",
        "iqn.1994-05.com.redhat:8f2c6d2b3e", "VM.start R:a1b2c3|trackid=0123456789abcdef0123456789abcdef",
        "Windows Server 2019 (64-bit)", "the token of the ring", "token_timeout=20000", "keymap=de",
    ],
)  # fmt: skip
def test_texts_that_hold_none(text: str) -> None:
    assert REDACTOR.text(text) == text
    value = {"k": text}
    found = result("xapi", "task.get_other_config", value)
    assert (found.value is value, found.paths, found.secrets) == (True, [], NOTHING)


# --- what nobody wrote down ------------------------------------------------------------------------------------------


def test_what_is_not_written_down_keeps_its_shape_alone() -> None:
    found = result("xapi", "VM.get_record", {"uuid": "u", "new": {"a": ["text", 3, True, None], "password": 7}})
    assert found.value == {"uuid": "u", "new": {"a": [UNDECLARED, 3, True, None], "password": SECRET}}
    assert found.paths == ["result.new"]


def test_undeclared_arguments() -> None:
    service, each = method("xapi", "VM.start")
    found = REDACTOR.arguments(service, each, {"vm": VM, "surplus": "text", "count": 3})
    assert (found.value, found.paths) == ({"vm": VM, "surplus": UNDECLARED, "count": 3}, ["arguments.surplus"])


def test_untyped_values_are_searched_at_any_depth() -> None:
    why = ["Failed", {"x": ["y", 3], "pwd": [PASSWORD, 3, True]}, f"of {SESSION}", b"bytes"]
    task = {"id": "1", "dbg": "d", "ctime": 1.0, "subtasks": {}, "debug_info": {}, "backtrace": "", "cancellable": True}
    found = result("xenopsd", "Task.stat", task | {"state": Tagged("Failed", why)})
    shown = ["Failed", {"x": ["y", 3], "pwd": [SECRET, SECRET, True]}, f"of {TOKEN}", SECRET]
    assert found.value == task | {"state": Tagged("Failed", shown)}
    assert found.paths == ["result.state.Failed"]


# --- once found, found everywhere ------------------------------------------------------------------------------------


SPACED = "hunter 2%&<é>\"'"


@pytest.mark.parametrize(
    "written",
    [
        SPACED,
        quote(SPACED, safe=""),
        quote_plus(SPACED),
        json.dumps(SPACED)[1:-1],
        json.dumps(SPACED, ensure_ascii=False)[1:-1],
        "hunter 2%&amp;&lt;é&gt;\"'",
        "hunter 2%&amp;&lt;é&gt;&quot;&apos;",
    ],
)
def test_a_secret_of_the_arguments_is_found_in_the_answer(written: str) -> None:
    """In the forms in which an answer may repeat it."""
    service, login = method("xapi", "session.login_with_password")
    secrets = arguments("xapi", "session.login_with_password", uname="root", pwd=SPACED).secrets
    code = "SESSION_AUTHENTICATION_FAILED"
    fault = Fault(Kind.DECLARED, f"{code}: root, no {written} here", code=code, argument=["root", written])
    found, paths = REDACTOR.fault(service, login, fault, secrets)
    assert found.text == f"{code}: root, no (secret) here"
    assert found.argument == ["root", SECRET]
    assert (found.code, found.kind) == (fault.code, fault.kind)
    assert paths == ["fault.text", "fault.argument[*]"]
    assert REDACTOR.text(f"a {written} b", secrets) == "a (secret) b"


def test_keys_of_maps_are_texts_too() -> None:
    known = frozenset({SESSION, PASSWORD})
    found = result("xapi", "VM.get_all_records", {SESSION: {}, VM: {}}, known)
    assert (found.value, found.paths) == ({TOKEN: {}, VM: {}}, ["result{#}"])
    found = result("xapi", "task.get_other_config", {f"a {PASSWORD}": "1", f"of {SESSION}": "2", "b": "3"}, known)
    assert (found.value, found.paths) == ({"a (secret)": "1", f"of {TOKEN}": "2", "b": "3"}, ["result{#}"])


def test_a_secret_is_found_in_what_came_before_it() -> None:
    given_ones = {"name_label": f"x {PASSWORD} y", "device_config": {"password": PASSWORD}}
    assert arguments("xapi", "SR.create", **given_ones).value["name_label"] == "x (secret) y"


def test_a_secret_called_secret_does_not_end_in_brackets() -> None:
    found = arguments("xapi", "session.login_with_password", uname="a secret b", pwd="secret")
    assert found.value == {"uname": "a (secret) b", "pwd": SECRET}


def test_what_is_shown_of_arguments_that_do_not_fit() -> None:
    service, login = method("xapi", "session.login_with_password")
    fault = Fault(Kind.INVALID_ARGUMENT, "version: Expected string, got 'I(1234)'")
    for each in (login, None):
        found, paths = REDACTOR.fault(service, each, fault, NOTHING)
        assert (found.text, paths) == ("version: Expected string, got '(secret)'", ["fault.text"])
        assert REDACTOR.fault(service, each, found, NOTHING)[0].text == found.text
    _, start = method("xapi", "VM.start")
    assert REDACTOR.fault(service, start, fault, NOTHING) == (fault, [])


def test_faults_without_secrets_are_the_same() -> None:
    service, start = method("xapi", "VM.start")
    fault = Fault(
        Kind.DECLARED, "VM_BAD_POWER_STATE: x", code="VM_BAD_POWER_STATE", argument=["x", "halted", "running"]
    )
    assert REDACTOR.fault(service, start, fault, frozenset({SESSION})) == (fault, [])
    fault = Fault(Kind.UNDECLARED, f"NEW: {SESSION}", code=f"NEW {SESSION}", argument=[{"pwd": PASSWORD}, "text"])
    found, paths = REDACTOR.fault(service, start, fault, NOTHING)
    assert (found.text, found.code, found.argument) == (f"NEW: {TOKEN}", f"NEW {TOKEN}", [{"pwd": SECRET}, "text"])
    assert paths == ["fault.text", "fault.code", "fault.argument"]


# --- HTTP, tokens, digests -------------------------------------------------------------------------------------------


def test_headers_keep_their_names() -> None:
    given_ones = (("Host", "h"), ("Cookie", f"session_id={SESSION}"), ("Authorization", "Basic x"), ("X-New", "1"))
    assert REDACTOR.headers(given_ones) == [
        ["Host", "h"], ["Cookie", SECRET], ["Authorization", SECRET], ["X-New", SECRET]
    ]  # fmt: skip


def test_targets_keep_harmless_queries() -> None:
    target = f"/export?session_id={SESSION}&uuid=ab-12&task_id={VM}&new=1;format=vhd&flag&x="
    shown = f"/export?session_id=(secret)&uuid=ab-12&task_id={REDACTOR.token(VM)}&new=(secret)&format=vhd&(secret)&x="
    assert REDACTOR.target(target) == shown
    assert REDACTOR.target("/RPC2") == "/RPC2"
    assert PASSWORD not in REDACTOR.target(f"http://root:{PASSWORD}@host/?uuid=password={PASSWORD}")


def test_tokens_keep_equality_and_depend_on_the_key() -> None:
    assert REDACTOR.token(SESSION) == TOKEN == Redactor(b"a key of the tests").token(SESSION)
    assert len({TOKEN, REDACTOR.token(VM), Redactor(b"another").token(SESSION)}) == 3
    assert REDACTOR.token(TOKEN) == TOKEN
    assert is_token(REDACTOR.token("anything"))
    assert not any(map(is_token, (SESSION, "", SECRET, TOKEN + "0", f"x{TOKEN}")))


def test_digests(monkeypatch: pytest.MonkeyPatch) -> None:
    other = Redactor(b"another")
    assert (other.policy, other.key_id != REDACTOR.key_id) == (REDACTOR.policy, True)
    assert re.fullmatch("[0-9a-f]{16}", REDACTOR.policy)
    assert re.fullmatch("[0-9a-f]{16}", REDACTOR.key_id)
    for name, rule in {"_NAME": re.compile("x"), "HEADERS": frozenset({"host"}), "_MIXED": 0.5}.items():
        with monkeypatch.context() as patch:
            patch.setattr(rules, name, rule)
            assert Redactor(b"another").policy != REDACTOR.policy


# --- random values of every interface --------------------------------------------------------------------------------


class Planted(NamedTuple):
    """A method's arguments (`place` is None) or its result, with a secret at one place that a rule covers."""

    stem: str
    method: Method
    value: Any
    is_result: bool


SECRETS = st.text(st.sampled_from("bcdfghjklmnpqrstvwxz"), min_size=12, max_size=12)
AROUND = [
    "password={}",
    "https://root:{}@host/",
    '{{"token": "{}"}}',
    "<pwd>{}</pwd>",
    "x session_id={}&y",
    "('pwd' '{}')",
]


@cache
def interface(stem: str) -> tuple[Method, ...]:
    """Methods of an interface: all, of xapi those that give a record, and every hundredth."""
    found = load(stem).methods()
    return found if len(found) < 500 else (*found[::100], *(m for m in found if m.member == "get_record"))


@cache
def references(stem: str) -> frozenset[int]:
    """The types of references, which no rule but one looks into."""
    service = load(stem)
    return frozenset(id(service.type({"ref": n})) for n in (f"{o} ref" for o in service.objects) if stem == "xapi")


def plant(kind: Type, value: Any, put: Callable[[str], str], skip: frozenset[int]) -> Any:
    """The value with `put` done to its texts that are no references, and with members that are not written down."""
    match kind:
        case Basic("string"):
            return value if id(kind) in skip else put(value)
        case Option(item):
            return None if value is None else plant(item, value, put, skip)
        case ListOf(item):
            return [plant(item, one, put, skip) for one in value]
        case TupleOf(items):
            return tuple(plant(item, one, put, skip) for item, one in zip(items, value, strict=True))
        case DictOf(item):
            return {name: plant(item, one, put, skip) for name, one in value.items()}
        case Record(fields):
            kinds = {f.name: bare(f.type) for f in fields if not isinstance(f.type, RecordOf)}
            found = {name: plant(kinds[name], one, put, skip) if name in kinds else one for name, one in value.items()}
            return found | ({"not-there": put("text")} if len(fields) > 0 else {})
        case Union() as union if union.by_name[value.tag].argument is not None:
            argument = union.by_name[value.tag].argument
            assert argument is not None
            return Tagged(value.tag, plant(argument, value.argument, put, skip))
    return value


def plant_one(kind: Type, value: Any, secret: str, around: str, which: int, skip: frozenset[int]) -> Any:
    """The value with the secret at one of its places; the value itself where it has none."""
    places = 0

    def count(text: str) -> str:
        nonlocal places
        places += 1
        return text

    plant(kind, value, count, skip)
    if not places:
        return value
    chosen, at = which % places, -1

    def put(text: str) -> str:
        nonlocal at
        at += 1
        return around.format(secret) if at == chosen else text

    return plant(kind, value, put, skip)


@pytest.mark.parametrize("stem", available())
@settings(max_examples=60, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), secret=SECRETS, around=st.sampled_from(AROUND), which=st.integers(0, 99))
def test_a_planted_secret_is_gone_and_types_are_intact(
    stem: str, data: st.DataObject, secret: str, around: str, which: int
) -> None:
    service, each = load(stem), data.draw(st.sampled_from(interface(stem)))
    value = plant_one(each.result, data.draw(values(each.result)), secret, around, which, references(stem))
    redacted = REDACTOR.result(service, each, value, NOTHING)
    assert secret not in repr(redacted.value)
    assert secret not in json.dumps(typed.write(each.result, redacted.value))
    assert bool(redacted.paths) == (not same(redacted.value, value)) == (redacted.value is not value)
    assert same(REDACTOR.result(service, each, redacted.value, NOTHING).value, redacted.value)
    type_survives(stem, each.result, redacted.value)

    given_ones = data.draw(arguments_of(each))
    of_text = [p for p in each.parameters if p.name in given_ones]
    if of_text:
        p = of_text[which % len(of_text)]
        given_ones[p.name] = plant_one(p.type, given_ones[p.name], secret, around, which, references(stem))
    found = REDACTOR.arguments(service, each, given_ones)
    assert secret not in repr(found.value)
    assert secret not in json.dumps(typed.write_arguments(each, found.value))
    arguments_survive(stem, each, found.value)


@pytest.mark.parametrize("stem", ["storage", "xapi", "cluster", "xenopsd"])
@settings(max_examples=60, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), secret=SECRETS, which=st.integers(0, 99))
def test_no_text_of_a_secret_argument_is_left(stem: str, data: st.DataObject, secret: str, which: int) -> None:
    service = load(stem)
    marked = [m for m in service.methods() if any(p.secret for p in m.parameters)]
    each = data.draw(st.sampled_from(marked))
    name, kind = data.draw(st.sampled_from([(p.name, p.type) for p in each.parameters if p.secret]))
    given_ones = {name: plant_one(kind, data.draw(values(kind)), secret, "{}", which, references(stem))}
    assume(secret in repr(given_ones))
    found = REDACTOR.arguments(service, each, given_ones | {"debug_info": f"of {secret}", "dbg": secret})
    assert secret not in repr(found.value)
    assert secret in found.secrets
