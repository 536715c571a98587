"""Which device does the work: CUDA (MIG slices and ROCm included), XPU, MPS or CPU, with its memory
and its types.

`DeviceManager` finds and chooses; it allocates nothing. What runs on the device and how is
`memory.py`'s decision.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from atelier.errors import SettingsError
from atelier.hardware.container import host_memory, set_cpu_threads, usable_cpus
from atelier.settings import Settings

if TYPE_CHECKING:
    import torch

__all__ = ["Device", "DeviceManager", "set_cpu_threads"]

Kind = Literal["cpu", "cuda", "mps", "xpu"]

BFLOAT16_CAPABILITY = (8, 0)
FP8_CAPABILITY = (8, 9)
"""NVIDIA compute capabilities from which the tensor cores have the type (CUDA C++ Programming
Guide)."""


@dataclass(frozen=True)
class Device:
    """One device as it is now. `bfloat16` and `fp8` say whether the hardware computes in them, not
    whether torch can emulate them. `host_free_bytes` is the RAM left for weights that are kept off
    the device."""

    kind: Kind
    index: int
    name: str
    capability: tuple[int, int] | None
    total_bytes: int
    free_bytes: int
    bfloat16: bool
    fp8: bool
    mig: bool = False
    host_free_bytes: int = 0

    @property
    def torch_device(self) -> str:
        """torch's name of the device: `cpu`, `mps`, `cuda:0`."""
        return self.kind if self.kind in ("cpu", "mps") else f"{self.kind}:{self.index}"

    @property
    def torch(self) -> torch.device:
        """torch's device object."""
        import torch

        return torch.device(self.torch_device)


class DeviceManager:
    """Finds devices and chooses one by DEVICE. torch reads CUDA_VISIBLE_DEVICES: indices count what
    is visible."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def select(self) -> Device:
        """The device named by DEVICE; with `auto` the accelerator with the most memory in all, else
        the CPU.

        Raises:
            SettingsError: DEVICE names a device that is not here; the message lists those that are.
        """
        wanted = self.settings.device
        if wanted == "auto":
            names = self._names()
            return self._describe(max(names, key=self._rank))
        if wanted not in self._names() and f"{wanted}:0" not in self._names():
            visible = os.environ.get("CUDA_VISIBLE_DEVICES")
            masked = f" (CUDA_VISIBLE_DEVICES={visible})" if visible is not None else ""
            raise SettingsError(
                f"DEVICE={wanted} is not here{masked}; allowed: auto, {', '.join(self._names())}"
            )
        return self._describe(wanted)

    def all(self) -> list[Device]:
        """Every device that is visible, the CPU last. Asking CUDA for free memory opens a context
        on each GPU."""
        return [self._describe(name) for name in self._names()]

    def _names(self) -> list[str]:
        import torch

        names = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
        names += [f"xpu:{index}" for index in range(torch.xpu.device_count())]
        return [*names, *(["mps"] if torch.backends.mps.is_available() else []), "cpu"]

    def _rank(self, name: str) -> tuple[int, int, int]:
        """Accelerators before the CPU, larger before smaller, first before later."""
        import torch

        kind, _, index = name.partition(":")
        order = ["cpu", "mps", "xpu", "cuda"].index(kind)
        if kind not in ("cuda", "xpu"):
            return order, 0, 0
        module = torch.cuda if kind == "cuda" else torch.xpu
        return order, int(module.get_device_properties(int(index)).total_memory), -int(index)

    def _describe(self, name: str) -> Device:
        kind, _, index = name.partition(":")
        if kind == "cuda":
            return _cuda(int(index or 0))
        if kind == "xpu":
            return _xpu(int(index or 0))
        return _mps() if kind == "mps" else _cpu()


def _cuda(index: int) -> Device:
    import torch

    properties = torch.cuda.get_device_properties(index)
    free, total = torch.cuda.mem_get_info(index)
    rocm = torch.version.hip is not None
    capability = None if rocm else (properties.major, properties.minor)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return Device(
        "cuda",
        index,
        properties.name,
        capability,
        total,
        free,
        bfloat16=capability is None or capability >= BFLOAT16_CAPABILITY,
        fp8=capability is not None and capability >= FP8_CAPABILITY,
        mig="MIG" in properties.name or visible.startswith("MIG-"),
        host_free_bytes=host_memory()[1],
    )


def _xpu(index: int) -> Device:
    import torch

    properties = torch.xpu.get_device_properties(index)
    free, total = torch.xpu.mem_get_info(index)
    return Device(
        "xpu",
        index,
        properties.name,
        None,
        total,
        free,
        True,
        False,
        host_free_bytes=host_memory()[1],
    )


def _mps() -> Device:
    import torch

    total = torch.mps.recommended_max_memory()
    free = max(0, total - torch.mps.driver_allocated_memory())
    version = int(platform.mac_ver()[0].partition(".")[0] or 0)
    # Metal has bfloat16 from macOS 14 on; RAM and device memory are one, so nothing is left for
    # offload.
    return Device(
        "mps", 0, platform.processor() or "Apple GPU", None, total, free, version >= 14, False
    )


def _cpu() -> Device:
    total, free = host_memory()
    name = ""
    flags: set[str] = set()
    for key, value in _cpuinfo():
        name = value if key == "model name" and not name else name
        flags |= set(value.split()) if key == "flags" and not flags else set()
    described = f"{name or platform.machine()}, {usable_cpus():g} CPUs"
    native = bool(flags & {"amx_bf16", "avx512_bf16"})
    return Device("cpu", 0, described, None, total, free, native, False, host_free_bytes=free)


def _cpuinfo() -> Iterator[tuple[str, str]]:
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text().splitlines():
            key, _, value = line.partition(":")
            yield key.strip(), value.strip()


def memory_now(torch_device: str) -> tuple[int, int]:
    """Bytes of the device's memory in use and free at this moment; of the CPU's, what the control
    group allows."""
    if torch_device.startswith("cuda"):
        import torch

        free, total = torch.cuda.mem_get_info(torch_device)
    else:
        total, free = host_memory()
    return total - free, free


def peak_bytes(torch_device: str) -> int | None:
    """The most that tensors of this process ever took of the device; None where nothing counts
    it."""
    if not torch_device.startswith("cuda"):
        return None
    import torch

    return torch.cuda.max_memory_allocated(torch_device)
