"""A small legacy perfmon: it takes commands as datagrams at an abstract address, and never answers.

    python examples/legacy_perfmon.py --address @perfmon --background --pidfile /tmp/perfmon.pid

`refresh` and `debug_mem` are its commands; what it does not know it logs. At most 256 bytes of a datagram are read.
"""

from __future__ import annotations

import argparse
import socket
import sys

from executions import Executions
from legacy_process import add_options, enter

COMMANDS = ("refresh", "debug_mem")
LONGEST = 256


def main() -> None:
    """Runs the daemon until SIGTERM."""
    parser = argparse.ArgumentParser(description="A small legacy perfmon.")
    parser.add_argument("--address", default="@perfmon", help="abstract address, @ for its first byte")
    add_options(parser)
    options = parser.parse_args()
    serving = enter(options)
    executions = Executions(options.executions)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as door:
        try:
            door.bind(options.address.replace("@", "\0", 1))
        except OSError as error:
            sys.exit(f"legacy perfmon: {options.address}: {error.strerror}")
        serving(f"legacy perfmon serves {options.address}")
        while True:
            command = door.recv(LONGEST).decode("utf-8", "backslashreplace")
            if command in COMMANDS:
                executions.count(command, "")
            else:
                print(f"unknown command {command!r}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
