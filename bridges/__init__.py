"""The integrator: joins the three protocol rooms and decides which side executes a call.

    cli  daemon  control                     what people and systemd touch
    flip  checks  asking  releasing          moving a service; looking at a host; the tools
    endpoints  doors  backends  dispatch     a service at run time; where calls enter, who answers, one call's life
    *_translation                            the only places where meaning changes form
    state  legacy_daemon                     what survives a crash; the daemon that has not moved
    cutover  settings  faults  calls  interfaces      tables and types, no I/O

`bridges` imports `xenstore_rpc`, `xmlrpc_gateway` and `dbus_side`; they import nothing of ours.
"""
