"""A limit on the time of Python code that is not ours, such as a chat template: it is interrupted
between two of its instructions."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

ON_ITS_WAY_MS = 100
"""How long an exception may take to arrive that comes as the block ends."""


class TimeIsUp(Exception):
    """Raised inside of the code that takes too long."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `TimeIsUp` within the block, in this thread, once `seconds` have passed.

    A single long call into C is not interrupted; the exception is raised after it.
    """
    thread = threading.get_ident()
    lock = threading.Lock()
    over = struck = raised = False

    def strike() -> None:
        nonlocal struck
        with lock:
            if not over:
                struck = True
                ctypes.pythonapi.PyThreadState_SetAsyncExc(
                    ctypes.c_ulong(thread), ctypes.py_object(TimeIsUp)
                )

    timer = threading.Timer(seconds, strike)
    timer.daemon = True
    timer.start()
    try:
        yield
    except TimeIsUp:
        raised = True
        raise
    finally:
        with suppress(TimeIsUp):  # it may still be on its way, and belongs to the block
            with lock:
                over = True
            for _ in range(ON_ITS_WAY_MS if struck and not raised else 0):
                time.sleep(0.001)
        timer.cancel()
