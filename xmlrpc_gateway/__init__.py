"""XML-RPC over HTTP, as the XCP toolstack speaks it: the room of the legacy callers and daemons.

```
server          the door where legacy callers enter          I/O
connection      one client's connection to it                I/O
client          calls and relays to a legacy daemon          I/O
sockets         owning a Unix socket's address               I/O
------------------------------------------------------------------ pure below
request_heads   a legacy client's request made fit to parse
http_messages   a request, a reply, the silent close
manners         how each kind of daemon behaves as an HTTP server
dialects        how each kind of interface uses XML-RPC, and its envelope
xmlrpc_codec    values <-> XML
errors          what can go wrong
```
Files import only from files below them. Nothing here knows an interface: what a value means is the caller's business.
"""
