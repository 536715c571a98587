"""Which device a worker gets: one GPU each, or on a CPU an equal share of the cores.

A worker sees its own GPU alone, so nothing in it can reach for a neighbour's. CUDA_VISIBLE_DEVICES
may name GPUs by index or UUID and MIG slices by UUID; its entries are handed out as they are.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from atelier.hardware.container import usable_cpus
from atelier.settings import Settings

VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Place:
    """What one worker is started with: environment variables, and settings that differ."""

    label: str
    environment: dict[str, str]
    overrides: dict[str, Any]


def place(settings: Settings, number: int, workers: int) -> Place:
    """The place of worker `number` of `workers`. Nothing is restricted for a lone worker."""
    if workers == 1:
        return Place(settings.device, {}, {})
    if settings.device == "cpu":
        share = max(1, int(usable_cpus()) // workers)
        overrides = {} if settings.omp_num_threads else {"omp_num_threads": share}
        return Place(f"cpu, share {number + 1} of {workers}", {}, overrides)
    visible = [one.strip() for one in os.environ.get(VISIBLE, "").split(",") if one.strip()]
    own = visible[number] if number < len(visible) else str(number)
    return Place(f"cuda {own}", {VISIBLE: own}, {"device": "cuda"})


def workers_wanted(settings: Settings) -> int:
    """Workers that are started at once: DATA_PARALLEL_SIZE, or one, which then says how many
    devices there are."""
    return settings.data_parallel_size or 1


def devices_here(settings: Settings) -> int:
    """Devices that workers can be given. Asked inside a worker, since it needs torch.

    DEVICE=cuda:N and a CPU are one device.
    """
    if settings.device not in ("auto", "cuda"):
        return 1
    import torch

    return max(1, torch.cuda.device_count()) if torch.cuda.is_available() else 1
