"""Xenstore, and the request/response convention that squeezed laid over it.

```
        rpc          Caller, Server: the convention over a store            I/O
      observer       watching the calls between others                      I/O
     connection      Store: transactions, watches, reconnection             I/O
        link         one connection: socket or character device             I/O
   conversations     the calls in a recorded connection of a client         pure
     access_log      the calls in oxenstored's access log                   pure
  session  records   the wire session; requests, responses, tree            pure
   packets  errors   packets, paths and payloads; what can go wrong         pure

     embedded        a small xenstored for demos and tests                  I/O
   embedded_tree     its node tree and transactions                         pure
```
Imports go downwards only. Nothing here knows of D-Bus, HTTP or the bridge.
"""
