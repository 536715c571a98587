"""Trainings in processes of their own, which can be killed, and connected to one another as
torchrun connects them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess

import atelier_training.dreambooth.train as training
from atelier_training.dreambooth.options import TrainOptions
from tests.conftest import free_port
from tests.processes import CONTEXT


@contextmanager
def trainings(*runs: TrainOptions) -> Iterator[Sequence[BaseProcess]]:
    """One process for each of `runs`, together one training; what still runs at the end is
    killed."""
    port = free_port()
    started = [
        CONTEXT.Process(target=_train, args=(run, rank, len(runs), port))
        for rank, run in enumerate(runs)
    ]
    try:
        for process in started:
            process.start()
        yield started
    finally:
        for process in started:
            process.kill()
            process.join()


def _train(options: TrainOptions, rank: int, processes: int, port: int) -> None:
    if processes > 1:
        places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_PORT": port}
        os.environ |= {name: str(value) for name, value in places.items()} | {
            "MASTER_ADDR": "127.0.0.1"
        }
    training.train(options)
