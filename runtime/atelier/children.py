"""What processes that are started here need: a port, and an end with the one that started them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

TIE = """
import ctypes, os, sys
number, parent, *command = sys.argv[1:]
ctypes.CDLL(None).prctl(1, int(number))  # PR_SET_PDEATHSIG of linux/prctl.h
if os.getppid() != int(parent):  # it ended before it was watched
    sys.exit(1)
os.execv(command[0], command)
"""
"""Run before the child's own program. Between fork and exec of a process with threads no Python
may run: it could wait for a lock that no thread holds any more."""

_starting = ThreadPoolExecutor(1, thread_name_prefix="starting")
# Linux watches the thread that started a child, not the process: this one ends with the process.


def free_port() -> int:
    """A port of the loopback address that nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_child(
    command: Sequence[str], number: signal.Signals, **options: Any
) -> subprocess.Popen[bytes]:
    """Start a process by the path of its program; Linux sends it the signal when this process ends,
    however it does. `options` are those of `Popen`."""
    tied = [*command]
    if sys.platform == "linux":
        tied = [sys.executable, "-ISc", TIE, str(int(number)), str(os.getpid()), *command]
    popen: Any = subprocess.Popen  # its overloads do not look into options
    started: subprocess.Popen[bytes] = _starting.submit(popen, tied, **options).result()
    return started
