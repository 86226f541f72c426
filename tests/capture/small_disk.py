"""A disk that is soon full: 400 KiB, mounted in a namespace of its own, which ends with the process that runs on it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run_on_small_disk(disk: Path, code: str, file: str, name: str) -> None:
    """Runs Python code with `file`, the path of `name` on the disk and the word disk as its arguments; as root."""
    disk.mkdir()
    script = 'mount -t tmpfs -o size=400k none "$1" && exec "$2" -c "$3" "$4" "$1/$5" disk'
    arguments = ["unshare", "-m", "sh", "-c", script, "sh", str(disk), sys.executable, code, file, name]
    subprocess.run(arguments, check=True, cwd=ROOT, timeout=50)
