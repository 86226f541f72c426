"""Replay: yesterday's traffic against today's daemon, and a verdict.

driving     sends recorded calls to a target, on their schedule
serving     stands in for a daemon with recorded answers (recorded)
targets     whom calls are sent to, and whether it is a sandbox (bound, http_client)
------------------------------------------------------------------------------------------------------ pure
linting     what a capture says by itself (checking, lint_results)
planning    which recorded call is sent when, and after which
bindings    handles of today in the place of the recorded ones
verdicts    what was compared, and what comes of it (results)
masks       differences that somebody answers for (hiding)
pairs       requests and replies of a capture, joined
tallies     counting within bounds
------------------------------------------------------------------------------------------------------ reports
html_report, lint_html, junit_report, terminal_report (pages, words)
"""
