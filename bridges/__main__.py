"""`python -m bridges` is `xcp-bridge`."""

from __future__ import annotations

import signal


def main() -> None:
    """The entry point. A Ctrl-C while Python loads ends it as it ends any program; what to do then is the command's."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from bridges import cli  # noqa: PLC0415 -- it takes its time

    cli.main()


if __name__ == "__main__":
    main()
