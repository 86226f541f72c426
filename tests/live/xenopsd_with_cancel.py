"""The small legacy xenopsd of the examples, with Task.cancel: the task's state says so, whatever it was.

    python tests/live/xenopsd_with_cancel.py --socket /tmp/x/xenopsd --background --pidfile /tmp/x/xenopsd.pid

Real clients cancel tasks by the ids that they were given; the example knows none that can be cancelled.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import legacy_xenopsd
from legacy_http import Value


class Xenopsd(legacy_xenopsd.Xenopsd):
    """The service, and what is called by the method's name."""

    def _task_cancel(self, arguments: legacy_xenopsd.Record) -> Value:
        self._task(arguments)["state"] = ["Failed", ["Cancelled", arguments["id"]]]
        return None


if __name__ == "__main__":
    legacy_xenopsd.METHODS["Task.cancel"] = ("id",)
    legacy_xenopsd.Xenopsd = Xenopsd
    legacy_xenopsd.main()
