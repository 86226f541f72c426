"""The small legacy xenopsd speaks rpclib's dialect."""

from __future__ import annotations

import asyncio
import http.client
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures_host import Host

Ask = Callable[..., Awaitable[Any]]
VM: dict[str, Any] = {
    **{name: {} for name in ("xsdata", "platformdata", "bios_strings")},
    **{name: ["Start"] for name in ("on_crash", "on_shutdown", "on_reboot")},
    **dict.fromkeys(("memory_static_max", "memory_dynamic_max", "memory_dynamic_min"), 1 << 30),
    **dict.fromkeys(("suppress_spurious_page_faults", "pci_msitranslate", "pci_power_mgmt"), False),
    "id": "web",
    "ssidref": 0,
    "vcpu_max": 1,
    "vcpus": 1,
    "scheduler_params": {"affinity": []},
    "ty": ["HVM", {}],
}


@pytest.fixture
async def xenopsd(host: Host) -> Path:
    """A running xenopsd: the path of its socket."""
    await host.start_legacy("xenopsd")
    return host.path("xenopsd")


def named(**arguments: Any) -> dict[str, Any]:
    """The one struct of named arguments."""
    return {"debug_info": "d", **arguments}


async def finished(ask_http: Ask, path: Path, task: str) -> Any:
    """The state of a task that is over."""
    known = 0
    while (state := (await ask_http(path, "Task.stat", named(id=task)))["state"])[0] == "Pending":
        known = int((await ask_http(path, "UPDATES.get", named(last_id=known, timeout=20)))[2])
    return state


async def test_a_vm_lives_and_dies(ask_http: Ask, xenopsd: Path) -> None:
    """Long operations give a task at once; power states follow them, and wrong ones are refused."""
    assert await ask_http(xenopsd, "VM.add", named(vm=VM)) == "web"
    assert await ask_http(xenopsd, "VM.add", named(vm=VM)) == ("failure", ["Already_exists", ["vm", "web"]])
    for method, arguments, state in (
        ("VM.start", {"paused": False}, "Running"),
        ("VM.pause", {}, "Paused"),
        ("VM.unpause", {}, "Running"),
        ("VM.shutdown", {}, "Halted"),
    ):
        task = await ask_http(xenopsd, method, named(id="web", **arguments))
        assert (await finished(ask_http, xenopsd, task))[0] == "Completed"
        assert await ask_http(xenopsd, "Task.destroy", named(id=task)) is None
        (_, vm_state) = await ask_http(xenopsd, "VM.stat", named(id="web"))
        assert vm_state["power_state"] == state
    refused = await ask_http(xenopsd, "VM.pause", named(id="web"))
    assert refused == ("failure", ["Bad_power_state", ["Halted", "Running"]])
    assert await ask_http(xenopsd, "Task.list", named()) == []
    assert await ask_http(xenopsd, "VM.remove", named(id="web")) is None
    assert await ask_http(xenopsd, "VM.exists", named(id="web")) is False
    assert await ask_http(xenopsd, "VM.stat", named(id="web")) == ("failure", ["Does_not_exist", ["VM", "web"]])


async def test_records_leave_with_their_members_reversed(ask_http: Ask, xenopsd: Path) -> None:
    """Defaults are filled in, an absent option stays absent, numbers are text without a tag."""
    await ask_http(xenopsd, "VM.add", named(vm=VM))
    ((vm, state),) = await ask_http(xenopsd, "VM.list", named(unit=None))
    assert next(iter(vm)) == "has_vendor_device"
    assert list(vm)[-2:] == ["name", "id"]
    assert list(state)[-1] == "power_state"
    assert vm["name"] == "unnamed"
    assert vm["memory_static_max"] == str(1 << 30)
    assert "generation_id" not in vm


async def test_updates_name_what_changed(ask_http: Ask, xenopsd: Path) -> None:
    """Without last_id everything known is news; with it the call waits, or times out with nothing."""
    await ask_http(xenopsd, "VM.add", named(vm=VM))
    assert await ask_http(xenopsd, "UPDATES.get", named(timeout=20)) == [[], [["Vm", "web"]], "1"]
    assert await ask_http(xenopsd, "UPDATES.last_id", named()) == "1"
    waiting = asyncio.create_task(ask_http(xenopsd, "UPDATES.get", named(last_id=1)))
    await ask_http(xenopsd, "VM.remove", named(id="web"))
    assert await waiting == [[], [["Vm", "web"]], "2"]
    assert await ask_http(xenopsd, "UPDATES.get", named(last_id=2, timeout=0)) == [[], [], "2"]


async def test_what_does_not_fit_is_refused_in_rpclibs_words(ask_http: Ask, xenopsd: Path) -> None:
    """A missing argument is named, positional ones are refused but for query, an unknown method gets silence."""
    missing = await ask_http(xenopsd, "VM.stat", named())
    assert missing == ("failure", ["Internal_error", "Idl.MarshalError(\"Expecting named argument 'id'\")"])
    reason = "Marshalling error: Expecting dict as first argument when named parameters exist"
    positional = await ask_http(xenopsd, "VM.stat", "d", "web")
    assert positional == ("failure", ["Internal_error", f'Idl.MarshalError("{reason}")'])
    assert (await ask_http(xenopsd, "query", "d", None))["name"] == "legacy xenopsd"
    assert await ask_http(xenopsd, "DEBUG.trigger", named(cmd="x", args=[])) == ("failure", ["Unimplemented", "x"])
    with pytest.raises(http.client.RemoteDisconnected):
        await ask_http(xenopsd, "VM.s3suspend", named(id="web"))


async def test_sixteen_callers_are_served_at_once_and_counted(host: Host, ask_http: Ask) -> None:
    """One slow call does not hold up another: all have begun before the first one is over."""
    host.legacy["xenopsd"] += ["--slow-ms", "500"]
    await host.start_legacy("xenopsd")
    tokens = [f"t{number}" for number in range(16)]
    calls = [
        asyncio.create_task(ask_http(host.path("xenopsd"), "VM.exists", {"debug_info": token, "id": "x"}))
        for token in tokens
    ]
    async with asyncio.timeout(20):
        await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        assert len(host.executions()) > 1
        assert await asyncio.gather(*calls) == [False] * 16
    assert host.executions() == {("VM.exists", token): 1 for token in tokens}
