"""Which device each rank of a group has: consecutive GPUs of those that the worker sees, or a share
of the cores."""

from __future__ import annotations

import os
from pathlib import Path

from atelier.errors import SettingsError
from atelier.hardware.container import usable_cpus
from atelier.settings import Settings

VISIBLE = "CUDA_VISIBLE_DEVICES"
GPU_FILES = ("nvidia[0-9]*", "dxg", "kfd")
"""Of the drivers of NVIDIA, of NVIDIA under Windows' Linux, and of AMD."""


def visible_devices() -> list[str]:
    """The entries of CUDA_VISIBLE_DEVICES; none if it is not set."""
    return [one.strip() for one in os.environ.get(VISIBLE, "").split(",") if one.strip()]


def on_processor(settings: Settings, devices: Path = Path("/dev")) -> bool:
    """Whether the processor computes: DEVICE says so, or no driver shows a GPU, or
    CUDA_VISIBLE_DEVICES hides all. Asked where torch must not be imported."""
    hidden = os.environ.get(VISIBLE, "0").strip() in ("", "-1")
    gpus = not hidden and any(True for pattern in GPU_FILES for _ in devices.glob(pattern))
    return settings.device == "cpu" or (settings.device == "auto" and not gpus)


def settings_of(settings: Settings, rank: int, grouped: bool) -> Settings:
    """The settings of one rank: its own device, or its share of the cores.

    Args:
        grouped: there are other ranks to this process.

    Raises:
        SettingsError: SEQUENCE_PARALLEL_SIZE cannot be had here, with these settings or in this
            command.
    """
    size = settings.sequence_parallel_size
    if size == 1:
        return settings
    asked = f"SEQUENCE_PARALLEL_SIZE={size}"
    if not grouped:
        raise SettingsError(f"{asked} works with `atelier serve` alone; unset it for this command")
    if settings.enable_cpu_offload == "true":
        raise SettingsError(
            f"{asked} with ENABLE_CPU_OFFLOAD=true: weights that move cannot be shared by a group;"
            " set one of them only"
        )
    if settings.compile == "full":
        raise SettingsError(
            f"{asked} with COMPILE=full: a group changes how the denoiser is called; set COMPILE to"
            " regional"
        )
    import torch

    if settings.device == "auto" and not torch.cuda.is_available():
        settings = settings.model_copy(update={"device": "cpu"})
    if settings.device == "cpu":
        share = settings.omp_num_threads or max(1, int(usable_cpus()) // size)
        return settings.model_copy(update={"omp_num_threads": share})
    if settings.device not in ("auto", "cuda"):
        raise SettingsError(
            f"{asked} with DEVICE={settings.device}: a group takes consecutive CUDA devices, or"
            " cores; set DEVICE to auto, cuda or cpu"
        )
    _check_count(settings, torch.cuda.device_count(), asked)
    return settings.model_copy(update={"device": f"cuda:{rank}"})


def _check_count(settings: Settings, count: int, asked: str) -> None:
    """That this many visible devices make whole groups."""
    seen = f"{VISIBLE}={os.environ[VISIBLE]}" if VISIBLE in os.environ else "this machine"
    if count < settings.sequence_parallel_size:
        raise SettingsError(
            f"{asked}: a group needs as many devices, {seen} has {count}; set it to at most"
            f" {count}, or fewer workers (DATA_PARALLEL_SIZE)"
        )
    if settings.data_parallel_size is None and count % settings.sequence_parallel_size:
        raise SettingsError(
            f"{asked} does not divide the {count} devices of {seen}: set DATA_PARALLEL_SIZE to the"
            " number of groups, or another size"
        )


def device_names(settings: Settings) -> list[str]:
    """The devices of a group as people know them, the first rank's first. Asked inside a worker."""
    size = settings.sequence_parallel_size
    if not settings.device.startswith("cuda"):
        return [settings.device] * size
    visible = visible_devices() or [str(index) for index in range(size)]
    return [f"cuda {one}" for one in visible[:size]]
