"""Capture: what came and went at every door, redacted, in segments that `zstdcat` reads.

    recorder      takes what doors and legs offer, never in a caller's way (asyncio)
    describing    what was on a wire becomes a record: typed by the interface, redacted, native        (pure)
    redaction     what must never reach a disk                                                         (pure)
    store         directories of segments: writing, limits, reading, damage                            (files)
    frames        records in checksummed zstd frames, chained                                          (pure)
    records       the records themselves                                                               (pure)
    typed         values of the interface's types as JSON                                              (pure)

`importing` and `exporting` are the ways from and to other tools' files; `detectors` looks for secrets once more, and
knows nothing of `redaction`.
"""
