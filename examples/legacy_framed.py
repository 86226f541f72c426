"""JSON-RPC in frames of 16 digits on a Unix socket, with the manners of the OCaml daemons of the toolstack.

One exchange per connection, then close; the reply's id is always 0. What cannot be read, and an unknown method, get
nothing at all. Integers are given to the service as text, as `legacy_http` gives them, so that one service serves both.
"""

from __future__ import annotations

import contextlib
import json
import re
import socketserver
from pathlib import Path
from typing import Any

from legacy_http import Answer, Failure, UnknownMethod, Unreadable, Value


class FramedServer(socketserver.ThreadingUnixStreamServer):
    """Serves `path` in threads of its own. An old socket there is simply removed, as those daemons do."""

    request_queue_size = 5
    daemon_threads = True

    def __init__(self, path: Path, answer: Answer) -> None:
        self.answer = answer
        path.unlink(missing_ok=True)
        super().__init__(str(path), _Connection)


class _Connection(socketserver.StreamRequestHandler):
    server: FramedServer

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError, Unreadable, UnknownMethod):
            digits = self.rfile.read(16)
            if not re.fullmatch(rb"[0-9][0-9_]{15}", digits):
                raise Unreadable("no length")
            length = int(digits.replace(b"_", b""))
            body = self.rfile.read(length)
            if len(body) < length:
                raise Unreadable("short body")
            reply = _reply(self.server.answer, body)
            self.wfile.write(b"%016d%s" % (len(reply), reply))


def _reply(answer: Answer, body: bytes) -> bytes:
    try:
        call = json.loads(body)
    except ValueError as error:
        raise Unreadable(str(error)) from None
    match call:
        case {"method": str(method), "params": list(params), "id": int() | str()}:
            pass
        case _:
            raise Unreadable("no call")
    try:
        reply = {"result": answer(method, [_as_text(param) for param in params]), "error": None, "id": 0}
    except Failure as failure:
        reply = {"result": None, "error": failure.description, "id": 0}
    return json.dumps(reply, separators=(",", ":"), ensure_ascii=False).encode()


def _as_text(value: Any) -> Value:
    match value:
        case int() if not isinstance(value, bool):
            return str(value)
        case list():
            return [_as_text(item) for item in value]
        case dict():
            return {name: _as_text(item) for name, item in value.items()}
        case _:
            return value  # type: ignore[no-any-return]
