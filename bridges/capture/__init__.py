"""Capture: what came and went at every door, redacted, in segments that `zstdcat` reads.

    recorder      takes what doors and legs offer, never in a caller's way (asyncio)
    taps          where they offer it: a tap for each service, a trail for each call
    messages      what they offer: messages as they were
    ------------------------------------------------------------------------------------------------------ records
    describing    a message becomes a record: typed by the interface, redacted, in the protocol's own words
                  (legs, legs_of_sockets, legs_of_store, legs_of_bus, natives, unreadable)
    redaction     what must never reach a disk (redacting, texts, rules)
    detectors     looks for secrets once more, and knows nothing of `redaction`
    typed         values of the interface's types as JSON
    records       the records themselves
    ------------------------------------------------------------------------------------------------------ files
    writing       directories of segments, within limits (headers)
    store         reading them, whatever was damaged (segments)
    verifying     whether a capture is whole
    frames        records in checksummed zstd frames, chained
    ------------------------------------------------------------------------------------------------------ other tools
    importing     oxenstored's access log, files of bus messages, recorded exchanges
                  (imports, import_access_log, import_dbus, import_exchanges)
    exporting     a file of bus messages, JSON Lines; chart: a sequence chart
    showing       what a person looks for

Only recorder, writing, store, segments and the imports do I/O.
"""
