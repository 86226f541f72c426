"""The D-Bus room: one connection to the private bus, and what may be said on it.

    bus         the connection: calls, names, owners, signals, incoming calls (I/O)
    wire        single messages to and from bytes, for files of them
    library     which D-Bus library is used; bus and wire meet it
    exported    objects with interfaces, answered for a bus (I/O: the machine id)
    stream      its socket: authentication, bytes, room to write (I/O)
    ------------------------------------------------------------------ below: pure
    messages    what goes over a bus, as data
    frames      the byte stream cut into messages
    pcap        files of captured messages: pcap and pcapng
    addresses   where a bus listens
    signatures  values checked against a signature, ours to the library's form and back
    introspection  interfaces as data, to and from XML
    names       which names are legal, and how services, objects and methods are named here
    errors      everything this room raises

It imports nothing of the other packages. `idl/` holds the published introspection XML.
"""
