"""A group whose first rank is the test's process."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.context import ForkServerContext
from typing import Any

import pytest

from atelier.images.group import RankGroup
from atelier.settings import Settings
from atelier.workers.group import FollowerProcesses
from atelier.workers.handle import _Output


@contextmanager
def group_of(
    context: ForkServerContext,
    settings: Settings,
    lost: Callable[[str], Any] = pytest.fail,
) -> Iterator[RankGroup]:
    """Followers of the real kind. `lost` is told when the group cannot go on."""
    processes = FollowerProcesses(context, settings, "0", os.environ, _Output())
    for process in processes._processes:
        process.start()
    assert processes.store is not None
    group = RankGroup(processes.ends, processes.store, lost)
    for end in processes._theirs:
        end.close()
    try:
        yield group
    finally:
        group.close()
        processes.end()
