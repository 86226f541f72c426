"""The pool that the small legacy xapi makes up: hosts with storage and a network, VMs with everything they need."""

from __future__ import annotations

from legacy_xapi_objects import NULL, Database, DateTime, Value

GIB = 1 << 30
LONG_AGO = DateTime("20240229T12:00:00Z")
VERSION: dict[str, Value] = {"product_brand": "XCP-ng", "product_version": "8.3.0", "platform_version": "3.4.0"}


def populate(database: Database, hosts: int, vms: int) -> None:
    """A pool, hosts with a control domain each, a template, VMs: vm0 runs, vm1 is halted, and so on."""
    network = database.insert("network", name_label="Pool-wide network 0", bridge="xenbr0")
    pool = database.insert("pool", name_label="pool")
    shared = database.insert("SR", name_label="shared", type="nfs", content_type="user", shared=True)
    refs = [_add_host(database, number, network, shared) for number in range(hosts)]
    database.change("pool", pool, master=refs[0], default_SR=shared, other_config={"cpuid_feature_mask": ""})
    _add_vm(database, "Debian 12", "", is_a_template=True, is_default_template=True)
    for number in range(vms):
        host = refs[number % hosts] if number % 2 == 0 else ""
        vm = _add_vm(database, f"vm{number}", host, domid=number + 2 if host else -1)
        _equip(database, vm, number, network, shared)


def _add_host(database: Database, number: int, network: str, shared: str) -> str:
    metrics = database.insert(
        "host_metrics", memory_total=64 * GIB, memory_free=32 * GIB, live=True, last_updated=LONG_AGO
    )
    versions: dict[str, Value] = {"API_version_major": 2, "API_version_minor": 21, "API_version_vendor": "XenSource"}
    host = database.insert(
        "host",
        name_label=f"host{number}",
        hostname=f"host{number}",
        address=f"192.0.2.{number + 1}",
        enabled=True,
        metrics=metrics,
        software_version=VERSION,
        cpu_info={"cpu_count": "8", "vendor": "GenuineIntel"},
        capabilities=["xen-3.0-x86_64", "hvm-3.0-x86_64"],
        edition="xcp-ng",
        **versions,
    )
    local = database.insert("SR", name_label=f"local {number}", type="ext", content_type="user")
    for sr in (shared, local):
        database.insert("PBD", host=host, SR=sr, currently_attached=True, device_config={"location": "example"})
    physical = database.insert("PIF_metrics", carrier=True, speed=10000, duplex=True, last_updated=LONG_AGO)
    mac = f"00:16:3e:00:00:{number:02x}"
    address: dict[str, Value] = {
        "IP": f"192.0.2.{number + 1}",
        "netmask": "255.255.255.0",
        "ip_configuration_mode": "DHCP",
    }
    wire: dict[str, Value] = {"device": "eth0", "VLAN": -1, "MTU": 1500, "physical": True, "management": True}
    database.insert("PIF", host=host, network=network, MAC=mac, metrics=physical, **wire, **address)
    control = _add_vm(database, f"Control domain on host{number}", host, is_control_domain=True)
    database.change("host", host, control_domain=control)
    return host


def _add_vm(database: Database, name: str, host: str, **more: Value) -> str:
    """A VM that runs on that host, or is halted."""
    memory: dict[str, Value] = dict.fromkeys(("memory_static_max", "memory_dynamic_max", "memory_dynamic_min"), 4 * GIB)
    start = LONG_AGO if host else DateTime("19700101T00:00:00Z")
    metrics = database.insert(
        "VM_metrics",
        memory_actual=4 * GIB if host else 0,
        VCPUs_number=2,
        VCPUs_utilisation={"0": 0.25, "1": 1.0},
        VCPUs_CPU={"0": 3, "1": 4},
        VCPUs_flags={"0": ["online", "running"]},
        start_time=start,
        install_time=LONG_AGO,
        last_updated=LONG_AGO,
    )
    return database.insert(
        "VM",
        name_label=name,
        name_description=f'{name}: größer <&> "kleiner"',
        power_state="Running" if host else "Halted",
        resident_on=host or NULL,
        metrics=metrics,
        VCPUs_max=2,
        VCPUs_at_startup=2,
        memory_static_min=GIB,
        actions_after_reboot="restart",
        platform={"acpi": "1", "nx": "true"},
        other_config={"base_template_name": "Debian 12"},
        tags=["example"],
        **memory,
        **more,
    )


def _equip(database: Database, vm: str, number: int, network: str, sr: str) -> None:
    """A disk, a network interface, a console, and what the guest tells of itself."""
    attached = number % 2 == 0
    disk = database.insert(
        "VDI", name_label=f"disk of vm{number}", SR=sr, virtual_size=10 * GIB, type="system", managed=True
    )
    database.insert(
        "VBD", VM=vm, VDI=disk, device="xvda", userdevice="0", bootable=True, mode="RW", currently_attached=attached
    )
    mac = f"00:16:3e:01:{number >> 8 & 255:02x}:{number & 255:02x}"
    database.insert("VIF", VM=vm, network=network, device="0", MAC=mac, MTU=1500, currently_attached=attached)
    if attached:
        database.insert("console", VM=vm, protocol="rfb", location="https://192.0.2.1/console?ref=" + vm)
        guest = database.insert("VM_guest_metrics", os_version={"name": "Debian 12"}, live=True, last_updated=LONG_AGO)
        database.change("VM", vm, guest_metrics=guest)
