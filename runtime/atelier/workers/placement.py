"""Which device a worker gets: one GPU each, or as many consecutive ones as its group has ranks; on
a CPU an equal share of the cores.

A worker sees its own GPU alone, so nothing in it can reach for a neighbour's. CUDA_VISIBLE_DEVICES
may name GPUs by index or UUID and MIG slices by UUID; its entries are handed out as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from atelier.hardware.container import usable_cpus
from atelier.hardware.ranks import VISIBLE, on_processor, visible_devices
from atelier.settings import Settings


@dataclass(frozen=True)
class Place:
    """What one worker is started with: environment variables, and settings that differ."""

    label: str
    environment: dict[str, str]
    overrides: dict[str, Any]


def place(settings: Settings, number: int, workers: int) -> Place:
    """The place of worker `number` of `workers`. Nothing is restricted for a lone worker."""
    size = settings.sequence_parallel_size
    if workers == 1:
        return Place(settings.device, {}, {})
    if on_processor(settings):
        share = max(1, int(usable_cpus()) // (workers * size))
        threads = {} if settings.omp_num_threads else {"omp_num_threads": share}
        return Place(f"cpu, share {number + 1} of {workers}", {}, {"device": "cpu"} | threads)
    visible, numbers = visible_devices(), range(number * size, (number + 1) * size)
    own = ",".join(visible[one] if one < len(visible) else str(one) for one in numbers)
    return Place(f"cuda {own}", {VISIBLE: own}, {"device": "cuda"})


def workers_wanted(settings: Settings) -> int:
    """Workers that are started at once: DATA_PARALLEL_SIZE, or one, which then says how many
    devices there are."""
    return settings.data_parallel_size or 1


def devices_here(settings: Settings) -> int:
    """Devices, or groups of devices, that workers can be given. Asked inside a worker, since it
    needs torch.

    DEVICE=cuda:N and a CPU are one.
    """
    if settings.device not in ("auto", "cuda"):
        return 1
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 1
    return max(1, count // settings.sequence_parallel_size)
