"""`make demo`, as a newcomer runs it."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(150)
async def test_the_demo_loses_and_doubles_nothing() -> None:
    """The demo ends by itself with an account that says so, and leaves nothing behind."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(ROOT / "examples" / "demo.py"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    output, _ = await process.communicate()
    text = output.decode()
    assert process.returncode == 0, text
    assert "lost 0, doubled 0" in text
    assert not Path(f"/tmp/xcp-demo-{process.pid}").exists()  # noqa: ASYNC240 -- a local name, in a test
