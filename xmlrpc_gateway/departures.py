"""Noticing that the other end of a connection has left for good, and did not only end its sending."""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def watching(descriptor: int, left: Callable[[], object], *, at_half_close: bool = False) -> Iterator[None]:
    """Calls `left`, once, when the connection's other end closes it while the block runs, or had closed it before.

    Reading shows the same end of the data for both. The kernel's "hang-up" does not, and is told to those who wait for
    nothing else (epoll(7): EPOLLHUP is always reported). On TCP it comes with a reset, or when both sides have ended
    their sending: an end that closed looks as if it still listened until something is sent to it. `at_half_close` takes
    the end of its sending for its leaving.
    """
    loop = asyncio.get_running_loop()
    with select.epoll() as events:

        def hung_up() -> None:
            loop.remove_reader(events.fileno())
            left()

        events.register(descriptor, select.EPOLLRDHUP if at_half_close else 0)
        loop.add_reader(events.fileno(), hung_up)
        try:
            yield
        finally:
            loop.remove_reader(events.fileno())
