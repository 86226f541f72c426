"""jeepney (pure Python) on the bus: python jeepney_client.py ADDRESS. Prints one line of JSON."""

import json
import sys

from jeepney import DBusAddress, DBusErrorResponse, new_method_call
from jeepney.io.blocking import open_dbus_connection
from jeepney.wrappers import unwrap_msg


def main(address):
    with open_dbus_connection(address) as connection:

        def call(kind, member, signature, *arguments):
            at = DBusAddress(f"/org/xen/xcp/xapi/{kind}", "org.xen.xcp.xapi", f"org.xen.xcp.xapi.{kind}1")
            message = new_method_call(at, member, signature, arguments)
            return unwrap_msg(connection.send_and_get_reply(message, timeout=30))[0]

        session = call("session", "LoginWithPassword", "ssa{sv}", "root", "xapi", {})
        records = call("VM", "GetAllRecords", "s", session)
        ref = next(ref for ref, record in records.items() if record["name_label"] == ("s", "vm1"))
        label = "seen by jeepney"
        _, token = call("event", "From", "sassd", session, ["vm"], "", 5.0)["token"]
        message = new_method_call(
            DBusAddress("/org/xen/xcp/xapi/VM", "org.xen.xcp.xapi", "org.xen.xcp.xapi.VM1"),
            "SetNameDescription", "sss", (session, ref, label),
        )  # fmt: skip
        assert unwrap_msg(connection.send_and_get_reply(message, timeout=30)) == ()
        _, events = call("event", "From", "sassd", session, ["vm"], token, 5.0)["events"]
        event = next(event for event in events if event["ref"] == ("s", ref))
        try:
            call("VM", "GetRecord", "ss", session, "OpaqueRef:none")
        except DBusErrorResponse as error:
            code, arguments = error.name, error.data[1]
        answer = {
            "client": "jeepney",
            "name": records[ref]["name_label"][1],
            "memory": records[ref]["memory_static_max"][1],
            "event": event["snapshot"][1]["name_description"] == ("s", label),
            "error": [code, arguments],
        }
        sys.stdout.write(json.dumps(answer) + "\n")


main(sys.argv[1])
