"""dbus-python (libdbus) on the bus: python3 dbus_python.py ADDRESS. Prints one line of JSON."""

import json
import sys

import dbus
from dbus.connection import Connection


def main(address):
    bus = Connection(address)
    bus.call_blocking("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "Hello", "", ())

    def call(kind, member, signature, *arguments):
        path = f"/org/xen/xcp/xapi/{kind}"
        return bus.call_blocking(
            "org.xen.xcp.xapi", path, f"org.xen.xcp.xapi.{kind}1", member, signature, arguments, timeout=30.0
        )

    nothing = dbus.Dictionary({}, signature="sv")
    session = call("session", "LoginWithPassword", "ssa{sv}", "root", "xapi", nothing)
    records = call("VM", "GetAllRecords", "s", session)
    ref = next(ref for ref, record in records.items() if record["name_label"] == "vm1")
    label = "seen by dbus-python"
    batch = call("event", "From", "sassd", session, dbus.Array(["vm"], signature="s"), "", 5.0)
    call("VM", "SetNameDescription", "sss", session, ref, label)
    batch = call("event", "From", "sassd", session, dbus.Array(["vm"], signature="s"), batch["token"], 5.0)
    event = next(event for event in batch["events"] if event["ref"] == ref)
    try:
        call("VM", "GetRecord", "ss", session, "OpaqueRef:none")
    except dbus.DBusException as error:
        code = error.get_dbus_name()  # its arguments but for the text are not to be had in this binding
    answer = {
        "client": "dbus-python",
        "name": str(records[ref]["name_label"]),
        "memory": int(records[ref]["memory_static_max"]),
        "event": str(event["snapshot"]["name_description"]) == label,
        "error": [code],
    }
    sys.stdout.write(json.dumps(answer) + "\n")


main(sys.argv[1])
