"""The count of executions, the same for legacy daemons and for those on the bus, so that both can be compared."""

from __future__ import annotations

import os
from pathlib import Path


class Executions:
    """A line `SIDE FUNCTION TOKEN` per execution. The token is a name that the caller gave its call."""

    def __init__(self, path: Path | None, side: str = "legacy") -> None:
        self._side = side
        self._file = None if path is None else os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def count(self, function: str, token: str) -> None:
        """One write before anything is done, so that not even SIGKILL can hide an execution."""
        if self._file is not None:
            os.write(self._file, f"{self._side} {function} {'_'.join(token.split()) or '-'}\n".encode())
