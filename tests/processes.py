"""Processes forked from one that has imported everything: a server is there in a second, not in
seven.

Apart from that they are `python -m MODULE ARGUMENTS`: with a command line, an environment and an
output of their own. Where it matters what is imported when, a process is executed.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver
from pathlib import Path

import kserve

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.imported"])
READ_AT_IMPORT = ("HF_", "OMP_", "TORCH")
"""Beginnings of variables that libraries read when they are imported, which is before the fork."""


class Forked:
    """A process with the part of `subprocess.Popen` that tests use."""

    def __init__(
        self, module: str, arguments: Sequence[str], environment: Mapping[str, str], log: Path
    ) -> None:
        """`environment` is added to this process's own; `module` has a function `main`."""
        late = [
            name
            for name in environment
            if name.startswith(READ_AT_IMPORT) and os.environ.get(name) != environment[name]
        ]
        assert not late, f"{late} would come too late for a forked process"
        self._process = CONTEXT.Process(
            target=_run,
            args=(module, arguments, os.environ | environment, log, _address()),
        )
        self._process.start()
        assert self._process.pid
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(str(self._process), timeout or 0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Executed(subprocess.Popen[bytes]):
    """The same process from its very beginning."""

    def __init__(
        self, module: str, arguments: Sequence[str], environment: Mapping[str, str], log: Path
    ) -> None:
        paths = {"PYTHONPATH": os.pathsep.join(sys.path)}
        with log.open("wb") as output:
            command = [
                sys.executable,
                "-c",
                f"import {module} as module; module.main()",
                *arguments,
            ]
            super().__init__(
                command, env=os.environ | paths | environment, stdout=output, stderr=output
            )


def _address() -> str:
    """Where the process listens that forks."""
    forkserver.ensure_running()
    return str(forkserver._forkserver._forkserver_address)


def _run(
    module: str, arguments: Sequence[str], environment: Mapping[str, str], log: Path, address: str
) -> None:
    # Its workers are forked from the same process as itself, which has imported everything.
    forkserver._forkserver._forkserver_address = address
    forkserver._forkserver.ensure_running = lambda: None
    forkserver.ensure_running = lambda: None
    for number in (1, 2):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [module, *arguments]
    if "serve" in arguments:
        # Reads the command line when it is imported, into the defaults of this class.
        kserve.ModelServer = importlib.reload(kserve.model_server).ModelServer
    importlib.import_module(module).main()
