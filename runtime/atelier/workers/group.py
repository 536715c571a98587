"""The processes of a group besides its worker: started with it, ended with it.

The worker is the group's first rank and the only one that the front speaks to. Each follower has a
pipe to it: when the worker ends, its followers end; when a follower ends, the worker does, and both
are replaced as any dead worker is.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import tempfile
from collections.abc import Mapping
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

from atelier import logs
from atelier.settings import Settings

log = logging.getLogger(__name__)

END_S = 5.0
"""Followers get this long to notice that their worker is gone."""


class FollowerProcesses:
    """The followers of one worker, as the front has them."""

    def __init__(
        self,
        context: ForkServerContext,
        settings: Settings,
        name: str,
        environment: Mapping[str, str],
        output: Any,
    ) -> None:
        """`name` is the worker's; `output` brings standard output and error along."""
        count = settings.sequence_parallel_size - 1
        self.store = Path(tempfile.mkdtemp(prefix="atelier-group-")) / "store" if count else None
        pipes = [context.Pipe() for _ in range(count)]
        self.ends = [end for end, _ in pipes]
        self._theirs = [end for _, end in pipes]
        self._processes = [
            context.Process(
                target=_main,
                args=(end, settings, self.store, name, rank, dict(environment), output),
                name=f"worker {name}, rank {rank}",
                daemon=True,
            )
            for rank, end in enumerate(self._theirs, start=1)
        ]

    def start(self) -> None:
        """Start them; the worker has its ends of the pipes already."""
        for process in self._processes:
            process.start()
        self.release()

    def release(self) -> None:
        """Close this process's copies of the pipes: an end that is open here never ends there."""
        for connection in (*self.ends, *self._theirs):
            connection.close()

    @property
    def pids(self) -> list[int]:
        """Of those that were started."""
        return [process.pid for process in self._processes if process.pid is not None]

    def end(self, seconds: float = END_S) -> None:
        """Wait until they are gone, then enforce it. Blocks."""
        for process in self._processes:
            if process.pid is None:
                continue
            process.join(seconds)
            if process.exitcode is None:
                process.kill()
                process.join(5)
        if self.store is not None:
            shutil.rmtree(self.store.parent, ignore_errors=True)


def _main(
    connection: Connection,
    settings: Settings,
    store: Path,
    name: str,
    rank: int,
    environment: dict[str, str],
    output: Any,
) -> None:
    """A follower's body."""
    os.environ.clear()
    os.environ.update(environment)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    from atelier.hardware.ranks import settings_of
    from atelier.images.follower import FollowingRank

    logs.set_up(settings, worker=f"{name} rank {rank}")
    log.debug("rank %d of worker %s starts", rank, name)
    FollowingRank(connection, settings_of(settings, rank, True), store, rank).follow()
    os._exit(0)  # NCCL may wait for ranks that are gone already
