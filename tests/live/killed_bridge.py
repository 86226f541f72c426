"""The bridge as `xcp-bridge run` runs it, that is killed at a moment which a test has chosen.

    python tests/live/killed_bridge.py SETTINGS FAULT

While there is no file FAULT it is a bridge like any other. The file holds `before POINT` or `after POINT`, and a number
when it is not the first time that counts: right before, or right after, that was made durable the process gets SIGKILL.
A point is a step of a flip (`prepared` to `watched`), or one of those that are no step:

    begun       the intent to flip
    frozen      the legacy daemon is stopped to look whether its tree is quiet
    recorded    a write, before it is dispatched
    answered    the result of a write, before its answer leaves
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from bridges.cli_running import run
from bridges.cutover import Step
from bridges.journal import Journal
from bridges.processes import Process
from bridges.state import State


class Fault:
    """What the file says, looked at whenever a point is reached."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def meet(self, when: str, point: str) -> None:
        """Does not return when this is the moment."""
        try:
            wanted_when, wanted_point, *number = self._path.read_text().split()
        except FileNotFoundError:
            return
        if (wanted_when, wanted_point) != (when, point):
            return
        left = int(number[0]) if number else 1
        if left > 1:
            self._path.write_text(f"{when} {point} {left - 1}")
            return
        self._path.unlink()
        os.kill(os.getpid(), signal.SIGKILL)

    def around(self, owner: type, name: str, point: Callable[..., str]) -> None:
        """Puts the points around a method; `point` names them by the method's arguments."""
        method = getattr(owner, name)

        def work(*args: Any, **kwargs: Any) -> Any:
            here = point(*args, **kwargs)
            self.meet("before", here)
            result = method(*args, **kwargs)
            self.meet("after", here)
            return result

        setattr(owner, name, work)

    def around_awaited(self, owner: type, name: str, point: str) -> None:
        """As `around`, for a coroutine."""
        method: Callable[..., Awaitable[Any]] = getattr(owner, name)

        async def work(*args: Any, **kwargs: Any) -> Any:
            self.meet("before", point)
            result = await method(*args, **kwargs)
            self.meet("after", point)
            return result

        setattr(owner, name, work)


def main() -> None:
    """The process."""
    settings, fault = Path(sys.argv[1]), Fault(Path(sys.argv[2]))
    fault.around(State, "begin", lambda *_: "begun")
    fault.around(State, "reached", lambda _state, _flip, step: str(step))
    fault.around(State, "commit", lambda *_: str(Step.COMMITTED))
    fault.around_awaited(Process, "freeze", "frozen")
    fault.around_awaited(Journal, "begin", "recorded")
    fault.around_awaited(Journal, "end", "answered")
    run(settings)


if __name__ == "__main__":
    main()
