"""Replay: yesterday's traffic against today's daemon, and a verdict.

driving    sends recorded calls to a target, on their schedule (asyncio)
serving    stands in for a daemon with recorded replies (asyncio)
linting    what a capture says without sending anything                     (pure)
planning   which recorded call is sent when, after which, with what handles (pure)
verdicts   what was compared, and what comes of it                          (pure)
masks      differences that somebody answers for                            (pure)
bound      one socket at a path, and none that comes after it
pairs      requests and replies of a capture, joined                        (pure)
reports    a result as a terminal table, one HTML page, JUnit XML           (pure)
"""
