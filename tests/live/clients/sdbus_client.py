"""sdbus (sd-bus) on the bus: DBUS_SYSTEM_BUS_ADDRESS=ADDRESS python sdbus_client.py. Prints one line of JSON."""

import json
import sys

from sdbus import SdBusLibraryError, SdBusUnmappedMessageError, sd_bus_open_system


def main():
    bus = sd_bus_open_system()

    def call(kind, member, signature, *arguments):
        message = bus.new_method_call_message(
            "org.xen.xcp.xapi", f"/org/xen/xcp/xapi/{kind}", f"org.xen.xcp.xapi.{kind}1", member
        )
        if signature:
            message.append_data(signature, *arguments)
        return bus.call(message).get_contents()

    session = call("session", "LoginWithPassword", "ssa{sv}", "root", "xapi", {})
    records = call("VM", "GetAllRecords", "s", session)
    ref = next(ref for ref, record in records.items() if record["name_label"] == ("s", "vm1"))
    label = "seen by sdbus"
    _, token = call("event", "From", "sassd", session, ["vm"], "", 5.0)["token"]
    call("VM", "SetNameDescription", "sss", session, ref, label)
    _, events = call("event", "From", "sassd", session, ["vm"], token, 5.0)["events"]
    event = next(event for event in events if event["ref"] == ("s", ref))
    try:
        call("VM", "GetRecord", "ss", session, "OpaqueRef:none")
    except (SdBusUnmappedMessageError, SdBusLibraryError) as error:
        code = error.args[0]
    answer = {
        "client": "sdbus",
        "name": records[ref]["name_label"][1],
        "memory": records[ref]["memory_static_max"][1],
        "event": event["snapshot"][1]["name_description"] == ("s", label),
        "error": [code],
    }
    sys.stdout.write(json.dumps(answer) + "\n")


main()
