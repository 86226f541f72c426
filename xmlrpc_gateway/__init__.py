"""XML-RPC and JSON-RPC, over HTTP and in frames, as the XCP toolstack speaks them: the room of the sockets.

```
server          the door where legacy callers enter          I/O
connection      one client's connection to it                I/O
client          calls and relays to a legacy daemon          I/O
streams         HTTP that is no call, passed on as it comes  I/O
framed          the same door and calls over framed sockets  I/O
datagrams       perfmon's control socket, both ends          I/O
listeners       accepting connections, up to a limit         I/O
exchanges       one exchange a connection, and its failures  I/O
departures      noticing that a client has left              I/O
callers         who is connected to somebody else's socket   I/O
sockets         owning a Unix socket's address               I/O
------------------------------------------------------------------ pure below
encodings       one face over XML-RPC and JSON-RPC
framed_messages a length and a body
request_heads   a legacy client's request made fit to parse
http_messages   a request, a reply, the silent close
manners         how each kind of daemon behaves as an HTTP server
jsonrpc_codec   calls, replies and values <-> JSON
dialects        how each kind of interface lays calls out, and the envelope of XML
xmlrpc_codec    values <-> XML
errors          what can go wrong
```
Files import only from files below them. Nothing here knows an interface: what a value means is the caller's business.
"""
