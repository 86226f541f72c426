"""The calls that are measured: each as an XML-RPC request with its canned reply, and as the same call on the bus.

`small` is a few dozen bytes each way, `typical` a VM.stat answer of 6 kB of XML, `text` one string of 10 MB, `records`
10 MB of the structure that VM.stat has: the two ends of what a large answer costs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from examples.legacy_http import Value, write_call
from xmlrpc_gateway import xmlrpc_codec
from xmlrpc_gateway.dialects import success

LARGE: Final = 10_000_000  # bytes of XML
VM: Final = "b1f0c3a2-0000-4000-8000-000000000001"
RESERVATION: Final = "0f5d2a9e-3d1c-4a3e-9b64-5f6f3f1c2b7a"


@dataclass(frozen=True)
class Measured:
    """One method with fixed arguments and a fixed result."""

    service: str
    method: str
    object: str
    member: str
    signature: str
    body: tuple[Any, ...]
    request: bytes
    result: Callable[[], Value]

    def reply(self) -> bytes:
        """The XML of the answer; that of the large ones takes a second to make."""
        return _reply(self.result())


def _texts(value: Value) -> Value:
    """Integers as decimal text without a tag, as the legacy daemons write them."""
    match value:
        case bool():
            return value
        case int():
            return str(value)
        case list():
            return [_texts(item) for item in value]
        case dict():
            return {name: _texts(item) for name, item in value.items()}
    return value


def _reply(value: Value) -> bytes:
    return xmlrpc_codec.encode_response(success(_texts(value)))  # type: ignore[arg-type]


_PV: Final[Value] = {
    "boot": ["Direct", {"kernel": "/boot/vmlinuz", "cmdline": "root=/dev/xvda1 ro", "ramdisk": "/boot/initrd"}],
    "framebuffer": False,
    "vncterm": True,
    "pci_passthrough": False,
}


def _stat() -> Value:
    """What VM.stat answers about a running VM: its description and its state."""
    vm: dict[str, Value] = {
        "id": VM,
        "name": "a virtual machine",
        "ssidref": 0,
        "xsdata": {},
        "platformdata": {"viridian": "true", "timeoffset": "0", "device-model": "qemu-upstream-compat"},
        "bios_strings": {f"oem-{number}": f"firmware string {number}" for number in range(1, 4)},
        "ty": ["PV", _PV],
        "suppress_spurious_page_faults": False,
        "memory_static_max": 4 << 30,
        "memory_dynamic_max": 4 << 30,
        "memory_dynamic_min": 1 << 30,
        "vcpu_max": 4,
        "vcpus": 4,
        "scheduler_params": {"priority": [256, 0], "affinity": [[0, 1, 2, 3] for _ in range(4)]},
        "on_crash": ["Start"],
        "on_shutdown": ["Shutdown"],
        "on_reboot": ["Start"],
        "on_softreboot": ["Softreboot"],
        "pci_msitranslate": True,
        "pci_power_mgmt": False,
        "has_vendor_device": False,
    }
    state: dict[str, Value] = {
        "power_state": "Running",
        "domids": [7],
        "consoles": [{"protocol": "Vt100", "port": 0, "path": f"/var/run/xen/console-{number}"} for number in (1, 2)],
        "memory_target": 4 << 30,
        "memory_actual": 4 << 30,
        "memory_limit": 4 << 30,
        "vcpu_target": 4,
        "shadow_multiplier_target": 1.0,
        "rtc_timeoffset": "0",
        "uncooperative_balloon_driver": False,
        "guest_agent": {f"data/key-{number}": f"a value of the guest {number}" for number in range(4)},
        "xsdata_state": {},
        "pv_drivers_detected": True,
        "last_start_time": 1_700_000_000.25,
        "hvm": False,
        "nomigrate": False,
        "nested_virt": False,
        "domain_type": "Domain_PV",
        "featureset": "1fcbfbff-80982203-2c100800-00000021-00000001-000007ab",
        "numa_optimised": False,
        "numa_nodes": 0,
        "numa_node_memory": [],
    }
    return [vm, state]


def _text() -> Value:
    """10 MB of one string, some of it to be escaped in XML."""
    entry = '{"id": "b1f0c3a2", "memory": "4294967296", "devices": ["xvda", "eth0"], "comment": "a & b"} '
    return entry * (LARGE // (len(_reply(entry * 2)) - len(_reply(entry))))


def _records() -> Value:
    stat = _stat()
    return [stat] * (LARGE // len(_reply(stat)))


def _query() -> Value:
    return {"name": "xenopsd", "vendor": "example", "version": "0.1", "features": ["VM"], "instance_id": "6f2d7f6e"}


_RESERVE: Final = ("bench", "session", 4096)
_UNIT: Final[Value] = {"debug_info": "bench", "unit": None}
_OF_VM: Final[Value] = {"debug_info": "bench", "id": VM}

CALLS: Final = {
    "reserve": Measured(
        "squeezed", "reserve_memory", "Memory", "ReserveMemory", "ssx", _RESERVE,
        write_call("reserve_memory", [_texts(item) for item in _RESERVE]), lambda: RESERVATION,
    ),
    "query": Measured(
        "xenopsd", "query", "Xenops", "Query", "s", ("bench",), write_call("query", [_UNIT]), _query
    ),
    "stat": Measured(
        "xenopsd", "VM.stat", "VM", "Stat", "ss", ("bench", VM), write_call("VM.stat", [_OF_VM]), _stat
    ),
    "text": Measured(
        "xenopsd", "VM.export_metadata", "VM", "ExportMetadata", "ss", ("bench", VM),
        write_call("VM.export_metadata", [_OF_VM]), _text,
    ),
    "records": Measured(
        "xenopsd", "VM.list", "VM", "List", "s", ("bench",), write_call("VM.list", [_UNIT]), _records,
    ),
}  # fmt: skip
