"""Real clients of xapi through the bridge, on every door, while the legacy daemon rules and while the bus daemon does.

Each makes the same way: it logs in, reads records, sees an event of its own change, and gets an error in its own words.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import XenAPI

from tests.fixtures_host import ROOT
from tests.fixtures_toolstack import Toolstack

CLIENTS = Path(__file__).parent / "clients"
NODE_MODULES = ROOT / ".venv" / "node_modules"
PATIENCE = 90

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(params=["relay", "live"])
async def xapi(toolstack: Toolstack, request: pytest.FixtureRequest) -> Toolstack:
    """xapi in a stage of the bridge."""
    await toolstack.start_xapi(request.param)
    return toolstack


async def run(*command: str, **environment: str) -> str:
    """The output of a client that ended well."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **environment},
    )
    try:
        async with asyncio.timeout(PATIENCE):
            output, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, f"{' '.join(command)}\n{errors.decode()}"
    return output.decode()


async def answer(*command: str, **environment: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(await run(*command, **environment))
    return found


async def test_clients_of_the_legacy_doors(xapi: Toolstack) -> None:
    """Xen Orchestra's client by all of its transports, Ruby's xmlrpc, XenAPI over TCP and the Unix socket, curl."""
    url = f"http://root:xapi@127.0.0.1:{xapi.port}"
    limit = ["calls-only"] if xapi.stage_name == "live" else []
    for transport in ("auto", "json-rpc", "xml-rpc"):
        found = await answer("node", str(CLIENTS / "xen-api.mjs"), url, transport, str(NODE_MODULES), *limit)
        assert found["login"], found
        assert found["event"], found
        assert found["relogin"], found
        assert found["record"]["name_label"] == "vm1"
        assert found["error"][0] == "VM_BAD_POWER_STATE"
        assert found["streamed"] == (0 if limit else 1_000_000)
    found = await answer("ruby", str(CLIENTS / "xmlrpc.rb"), url)
    assert found["event"], found
    assert found["invalid"] == "SESSION_INVALID"
    assert found["error"][0] == "VM_BAD_POWER_STATE"
    assert all(type(count) is int for count in found["counts"].values())
    assert found["methods"] > 100
    unix = "http://" + str(xapi.path("xapi")).replace("/", "_")
    for address in (f"http://127.0.0.1:{xapi.port}", unix):
        await asyncio.to_thread(use_xenapi, xapi, address)
    params = "<param><value>no session</value></param>"
    body = f"<methodCall><methodName>host.get_all</methodName><params>{params}</params></methodCall>"
    for target in ("/", "/RPC2", "/xmlrpc"):
        reply = await run(
            "curl", "-sS", "-H", "Content-Type: text/xml", "-d", body, f"http://127.0.0.1:{xapi.port}{target}"
        )
        assert "<value>SESSION_INVALID</value><value>no session</value>" in reply
    for version, expected in (
        ("", {"result": None, "error": ["SESSION_INVALID", "x"], "id": "7"}),
        (
            '"jsonrpc": "2.0", ',
            {"jsonrpc": "2.0", "error": {"code": 1, "message": "SESSION_INVALID", "data": ["x"]}, "id": "7"},
        ),
    ):
        body = f'{{{version}"method": "host.get_all", "params": ["x"], "id": "7"}}'
        reply = await run("curl", "-sS", "-d", body, f"http://127.0.0.1:{xapi.port}/jsonrpc")
        assert json.loads(reply) == expected


def use_xenapi(xapi: Toolstack, address: str) -> None:
    """PyPI's XenAPI: login, records, an event, an error, and a new login when its session has gone."""
    transport = XenAPI.UDSTransport() if "_" in address else None
    session = XenAPI.Session(address, transport=transport, ignore_ssl=True)
    session.xenapi.login_with_password("root", "xapi", "1.0", "test")
    try:
        (vm,) = session.xenapi.VM.get_by_name_label("vm1")
        record = session.xenapi.VM.get_record(vm)
        assert record["name_label"] == "vm1"
        assert int(record["memory_static_max"]) > 0
        assert type(record["is_a_template"]) is bool
        batch = session.xenapi.event_from(["vm"], "", 5.0)
        session.xenapi.VM.set_name_description(vm, f"seen by XenAPI {address}")
        batch = session.xenapi.event_from(["vm"], batch["token"], 30.0)
        assert any(e["snapshot"]["name_description"] == f"seen by XenAPI {address}" for e in batch["events"])
        assert type(batch["valid_ref_counts"]["vm"]) is int
        with pytest.raises(XenAPI.Failure) as failed:
            session.xenapi.VM.get_record("OpaqueRef:none")
        assert failed.value.details == ["HANDLE_INVALID", "VM", "OpaqueRef:none"]
        with pytest.raises(XenAPI.Failure) as failed:
            session.xenapi.VM.get_nothing(vm)
        assert failed.value.details == ["MESSAGE_METHOD_UNKNOWN", "VM.get_nothing"]
        with pytest.raises(XenAPI.Failure) as failed:
            session.xenapi.VM.get_record()
        assert failed.value.details == ["MESSAGE_PARAMETER_COUNT_MISMATCH", "VM.get_record", "1", "0"]
        before = session._session
        name = "xapi" if xapi.stage_name == "relay" else "xapi-behind"
        os.kill(xapi.legacy_pid(name), signal.SIGUSR1)
        assert session.xenapi.VM.get_by_name_label("vm1") == [vm]
        assert session._session != before
    finally:
        session.xenapi.session.logout()
        session("close")()


async def test_clients_of_the_bus(xapi: Toolstack) -> None:
    """Six implementations of D-Bus: dbus-python, jeepney, sdbus, busctl, gdbus, qdbus."""
    address = xapi.bus.address
    clients = [
        ["/usr/bin/python3", str(CLIENTS / "dbus_python.py"), address],
        [sys.executable, str(CLIENTS / "jeepney_client.py"), address],
        [sys.executable, str(CLIENTS / "sdbus_client.py")],
    ]
    for client in clients:
        found = await answer(*client, DBUS_SYSTEM_BUS_ADDRESS=address)
        assert found["name"] == "vm1", found
        assert type(found["memory"]) is int
        assert found["event"], found
        assert found["error"][0] == "org.xen.xcp.xapi.Error.HANDLE_INVALID", found
        assert found["error"][1:] in ([], [["VM", "OpaqueRef:none"]])
    name, path = "org.xen.xcp.xapi", "/org/xen/xcp/xapi"
    busctl = ["busctl", f"--address={address}", "--json=short", "call", name]
    reply = json.loads(
        await run(*busctl, f"{path}/session", f"{name}.session1", "LoginWithPassword", "ssa{sv}", "root", "xapi", "0")
    )
    (session,) = reply["data"]
    reply = json.loads(await run(*busctl, f"{path}/VM", f"{name}.VM1", "GetAllRecords", "s", session))
    assert reply["type"] == "a{sa{sv}}"
    refs = {record["name_label"]["data"]: ref for ref, record in reply["data"][0].items()}
    gdbus = ["gdbus", "call", "--address", address, "--dest", name, "--object-path", f"{path}/VM"]
    assert await run(*gdbus, "--method", f"{name}.VM1.GetNameLabel", session, refs["vm1"]) == "('vm1',)\n"
    qdbus = ["qdbus", name, f"{path}/VM", f"{name}.VM1.GetNameLabel", session, refs["vm1"]]
    assert await run(*qdbus, DBUS_SESSION_BUS_ADDRESS=address) == "vm1\n"
    assert f"method QString {name}.VM1.GetNameLabel(QString session_id, QString self)" in await run(
        "qdbus", name, f"{path}/VM", DBUS_SESSION_BUS_ADDRESS=address
    )


async def test_bad_input_at_the_doors_of_xapi(xapi: Toolstack) -> None:
    """What is no call gets xapi's own words; the next call is answered."""
    port = str(xapi.port)

    async def post(target: str, body: str) -> tuple[int, str]:
        out = await run(
            "curl", "-sS", "-w", "\n%{http_code}", "--data-binary", body, f"http://127.0.0.1:{port}{target}"
        )
        text, _, status = out.rpartition("\n")
        return int(status), text

    assert (await post("/", "<methodCall><methodName>x</methodNam"))[0] == 500
    call = "<methodCall><methodName>{}</methodName><params>{}</params></methodCall>"
    status, text = await post("/", call.format("Nothing.get_all", ""))
    assert (status, "MESSAGE_METHOD_UNKNOWN</value><value>Nothing.get_all" in text) == (200, True)
    many = "<param><value>x</value></param>" * 4
    status, text = await post("/", call.format("VM.get_record", many))
    expected = (
        "<value>MESSAGE_PARAMETER_COUNT_MISMATCH</value><value>VM.get_record</value><value>1</value><value>3</value>"
    )
    assert expected in text
    session = await asyncio.to_thread(login, xapi)
    enum = "".join(f"<param><value>{v}</value></param>" for v in (session, "OpaqueRef:none", "explode"))
    status, text = await post("/", call.format("VM.set_actions_after_shutdown", enum))
    ours = "<value>VALUE_NOT_SUPPORTED</value><value>value</value><value>explode</value><value>Unknown tag"
    assert (ours in text) == (xapi.stage_name == "live"), text
    assert "Failure" in text
    status, text = await post("/jsonrpc", '[{"method": "host.get_all", "params": ["x"], "id": 1}]')
    if xapi.stage_name == "live":
        secret = "".join(f"<param><value>{v}</value></param>" for v in ("root", "<i4>734915</i4>"))
        assert "FIELD_TYPE_ERROR" in (await post("/", call.format("session.login_with_password", secret)))[1]
        assert "pwd is a secret that does not fit" in xapi.log("bridge")
        assert "734915" not in xapi.log("bridge")
        assert (await post("/", "<!DOCTYPE a [<!ENTITY b 'c'>]><methodCall/>"))[0] == 500
        deep = "<value>" + "<array><data><value>" * 3000 + "</value></data></array>" * 3000 + "</value>"
        status, deeply = await post("/", call.format("host.get_all", f"<param>{deep}</param>"))
        assert (status, "nested" in deeply, "limit is 64" in deeply) == (200, True, True)
        reply = json.loads(text)
        assert (status, reply["id"], reply["error"]["code"]) == (200, None, -32600)
        member = "<member><name>a</name><value>1</value></member>"
        twice = f"<struct>{member}{member}</struct>"
        params = "".join(f"<param><value>{v}</value></param>" for v in (session, "OpaqueRef:none", twice))
        status, text = await post("/", call.format("VM.set_other_config", params))
        assert "NotRepresentable" in text
        assert "member 'a' occurs twice" in text
    status, text = await post("/jsonrpc", '{"jsonrpc":"2.0","method": "host.get_all", "params": ["x"], "id": 1.5}')
    assert json.loads(text)["error"]["message"] == "SESSION_INVALID"


def login(xapi: Toolstack) -> str:
    session = XenAPI.Session(f"http://127.0.0.1:{xapi.port}", ignore_ssl=True)
    session.xenapi.login_with_password("root", "xapi", "1.0", "test")
    session("close")()
    ref: str = session._session
    return ref
