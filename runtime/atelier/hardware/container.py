"""What the container may use: CPUs and memory by its control group (v1 and v2), and CPU threads.

A pod with `limits: {cpu: 4, memory: 8Gi}` on a node of 128 cores sees 128 cores and the node's
memory everywhere but here. Paths: https://docs.kernel.org/admin-guide/cgroup-v2.html and
cgroup-v1/memory.html.

How many threads one tensor operation gets is measured: on a shared machine of two cores, two OpenMP
threads took nine times as long as one, because each waits for the other at every barrier. So the
quota is an upper bound.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from atelier.settings import Settings

log = logging.getLogger(__name__)

NO_LIMIT = 2**60
"""Bytes; v1 writes an unlimited memory limit as a huge number (2**63 rounded to pages)."""


@dataclass(frozen=True)
class Cgroup:
    """The control groups of this process. `root` and `membership` are parameters for tests."""

    root: Path = Path("/sys/fs/cgroup")
    membership: Path = Path("/proc/self/cgroup")

    def cpu_quota(self) -> float | None:
        """CPUs of run time per second allowed, the least of this group's and its ancestors', or
        None without limit."""
        found = []
        for folder in self._folders(""):
            quota, _, period = _text(folder / "cpu.max").partition(" ")
            if quota.isdigit() and period:
                found.append(int(quota) / int(period))
        for folder in self._folders("cpu"):
            quota, period = _text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")
            if quota.isdigit() and period.isdigit() and int(period):
                found.append(int(quota) / int(period))
        return min(found, default=None)

    def memory(self) -> tuple[int, int] | None:
        """Memory limit and what is still free under it, in bytes; None without limit. Page cache
        that the kernel gives back when asked (inactive files) counts as free."""
        found = []
        for controller, limit_name, usage_name in (
            ("", "memory.max", "memory.current"),
            ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            for folder in self._folders(controller):
                limit, usage = _text(folder / limit_name), _text(folder / usage_name)
                if limit.isdigit() and usage.isdigit() and int(limit) < NO_LIMIT:
                    used = max(0, int(usage) - _inactive_files(folder / "memory.stat"))
                    found.append((int(limit), max(0, int(limit) - used)))
        return min(found, key=lambda pair: pair[1], default=None)

    def _folders(self, controller: str) -> Iterator[Path]:
        """This process's group of `controller` ("" is the v2 hierarchy) and its ancestors, as far
        as they are visible.

        In a container the root of its own group is mounted at `root`, while the membership may name
        the host's path.
        """
        for line in _text(self.membership).splitlines():
            _, controllers, path = line.split(":", 2)
            if controller != controllers and controller not in controllers.split(","):
                continue
            base = self.root / controllers if controller else self.root
            base = base if base.is_dir() else self.root / controller
            inside = Path(path.lstrip("/"))
            yield from (base / part for part in (inside, *inside.parents) if (base / part).is_dir())


def usable_cpus(cgroup: Cgroup | None = None) -> float:
    """CPUs this process may keep busy: the affinity mask (cpuset), cut to the quota."""
    affinity = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    quota = (cgroup or Cgroup()).cpu_quota()
    return affinity if quota is None else min(affinity, quota)


def host_memory(cgroup: Cgroup | None = None) -> tuple[int, int]:
    """RAM this process may use, and what of it is free, in bytes: the machine's, cut to the control
    group's limit."""
    total, free = _machine_memory()
    limits = (cgroup or Cgroup()).memory()
    return (min(total, limits[0]), min(free, limits[1])) if limits else (total, free)


def _machine_memory() -> tuple[int, int]:
    fields = {}
    for line in _text(Path("/proc/meminfo")).splitlines():
        name, _, value = line.partition(":")
        fields[name] = int(value.split()[0]) * 1024
    if "MemTotal" in fields and "MemAvailable" in fields:
        return fields["MemTotal"], fields["MemAvailable"]
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf(
        "SC_PHYS_PAGES"
    )  # macOS tells no figure for what is free
    return total, total


def _inactive_files(path: Path) -> int:
    names = dict(line.split(" ", 1) for line in _text(path).splitlines() if " " in line)
    return int(names.get("total_inactive_file", names.get("inactive_file", "0")))


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


MEASURE_SECONDS = 0.02
"""Of one measurement; a start makes four, less than a tenth of a second in all."""

WORTH = 0.9
"""More threads are taken only if they need at most this share of the time of one."""


def set_cpu_threads(settings: Settings) -> int:
    """Choose the number of threads, hand it to torch, log why, and return it.

    OMP_NUM_THREADS wins. Else one thread is measured against the usable CPUs (affinity and control
    group quota). Call it before the first tensor operation: the pool of threads is then no larger
    than the quota.
    """
    threads, reason = choose_threads(settings.omp_num_threads, usable_cpus(), _measure)
    import torch

    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(
        threads
    )  # for child processes, which would count the host's cores
    log.info("CPU threads of one operation: %d (%s)", threads, reason)
    return threads


def choose_threads(
    asked: int | None, cpus: float, measure: Callable[[int], float]
) -> tuple[int, str]:
    """The number of threads and the reason. `measure` gives the seconds of a fixed piece of work
    with n threads."""
    if asked is not None:
        return asked, f"OMP_NUM_THREADS={asked}"
    most = max(1, int(cpus))
    if most == 1:
        return 1, f"{cpus:g} CPUs usable"
    alone = min(measure(1), measure(1))
    together = max(
        measure(most), measure(most)
    )  # the worse one: a neighbour on the cores comes and goes
    figures = (
        f"{most} of {cpus:g} usable CPUs took {together / alone:.2f} of the time of one, measured"
    )
    return (most, figures) if together <= WORTH * alone else (1, figures)


def _measure(threads: int) -> float:
    """Mean seconds of a convolution and a matrix product of the size a small denoiser has."""
    import torch

    torch.set_num_threads(threads)
    image, kernel, matrix = (
        torch.ones(1, 64, 32, 32),
        torch.ones(64, 64, 3, 3),
        torch.ones(256, 256),
    )
    runs, start = -1, 0.0
    with torch.inference_mode():
        while runs < 1 or time.perf_counter() - start < MEASURE_SECONDS:
            torch.nn.functional.conv2d(image, kernel, padding=1)
            matrix @ matrix
            runs += 1
            if runs == 0:  # the first run allocates and starts the threads
                start = time.perf_counter()
    return (time.perf_counter() - start) / runs
