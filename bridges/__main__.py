"""`python -m bridges` is `xcp-bridge`."""

from bridges.cli import main

main()
