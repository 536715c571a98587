"""How many CPU threads one tensor operation gets.

More is not always faster: on a shared machine of two cores, two OpenMP threads were measured nine times slower than
one, because each waits for the other at every barrier. So the quota is an upper bound, and a short measurement decides.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable

from atelier.hardware.cgroup import usable_cpus
from atelier.settings import Settings

log = logging.getLogger(__name__)

MEASURE_SECONDS = 0.02
"""Of one measurement; a start makes four, less than a tenth of a second in all."""

WORTH = 0.9
"""More threads are taken only if they need at most this share of the time of one."""


def set_cpu_threads(settings: Settings) -> int:
    """Choose the number of threads, hand it to torch, log why, and return it.

    OMP_NUM_THREADS wins. Else one thread is measured against the usable CPUs (affinity and control group quota). Call
    it before the first tensor operation: the pool of threads is then no larger than the quota.
    """
    threads, reason = choose_threads(settings.omp_num_threads, usable_cpus(), _measure)
    import torch

    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # for child processes, which would count the host's cores
    log.info("CPU threads of one operation: %d (%s)", threads, reason)
    return threads


def choose_threads(asked: int | None, cpus: float, measure: Callable[[int], float]) -> tuple[int, str]:
    """The number of threads and the reason. `measure` gives the seconds of a fixed piece of work with n threads."""
    if asked is not None:
        return asked, f"OMP_NUM_THREADS={asked}"
    most = max(1, int(cpus))
    if most == 1:
        return 1, f"{cpus:g} CPUs usable"
    alone = min(measure(1), measure(1))
    together = max(measure(most), measure(most))  # the worse one: a neighbour on the cores comes and goes
    figures = f"{most} of {cpus:g} usable CPUs took {together / alone:.2f} of the time of one, measured"
    return (most, figures) if together <= WORTH * alone else (1, figures)


def _measure(threads: int) -> float:
    """Mean seconds of a convolution and a matrix product of the size a small denoiser has."""
    import torch

    torch.set_num_threads(threads)
    image, kernel, matrix = torch.ones(1, 64, 32, 32), torch.ones(64, 64, 3, 3), torch.ones(256, 256)
    runs, start = -1, 0.0
    with torch.inference_mode():
        while runs < 1 or time.perf_counter() - start < MEASURE_SECONDS:
            torch.nn.functional.conv2d(image, kernel, padding=1)
            matrix @ matrix
            runs += 1
            if runs == 0:  # the first run allocates and starts the threads
                start = time.perf_counter()
    return (time.perf_counter() - start) / runs
