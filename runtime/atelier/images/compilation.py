"""Modules made fast: residual blocks fused, and torch.compile for denoisers, their repeated blocks
(compiles in seconds) or all of it, with caches that outlive the process.

Shapes are dynamic, so one compile serves every size and row count. The warm-up has it done; after
that no request waits for a compiler: what the compiled code does not cover runs eagerly.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from atelier.hardware.kernel_cache import KernelCache
from atelier.images.interception import Gate, Stage
from atelier.images.residual_blocks import fuse, residual_blocks

log = logging.getLogger(__name__)


def keep_caches(cache_dir: Path, device: str, checkpoint: Path) -> KernelCache:
    """Point torch's compile caches at a folder for these versions, this device and this checkpoint,
    whatever the environment (the image sets these variables) named before; seal it after a good
    start.

    A cache made by another version or another GPU is never looked at, so none can be wrong. Call
    before torch compiles.
    """
    identity = f"{torch.__version__} {torch.version.cuda} {_gpu(device)} {checkpoint.resolve()}"
    folder = cache_dir / "compile" / hashlib.blake2b(identity.encode(), digest_size=8).hexdigest()
    kept = KernelCache(folder)
    kept.prepare()
    os.environ.update(kept.environment())
    return kept


def _gpu(device: str) -> str:
    """The kind of GPU, since replicas on others may share the volume; else the device's name."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


def speed_up(gates: Sequence[Gate], mode: str) -> None:
    """Compile the denoisers; `mode` is `regional` or `full`. Fuse the residual blocks of modules
    that are on a GPU, where they are not compiled: the compiler fuses them itself, and fails at
    dynamic sizes with channels last."""
    compiled = _compile_denoisers(gates, mode)
    for module, name in {gate.module: gate.name for gate in gates}.items():
        left = any(residual_blocks(part) for part in compiled.get(module, ()))
        if not left and _on_gpu(module) and (blocks := fuse(module)):
            log.info("%s: %d residual blocks are fused", name, blocks)


def _on_gpu(module: torch.nn.Module) -> bool:
    """Whether all of it is: one that is in RAM now and then may have hooks on layers whose weights
    a fused block uses."""
    return all(weight.is_cuda for weight in module.parameters())


def _compile_denoisers(
    gates: Sequence[Gate], mode: str
) -> dict[torch.nn.Module, list[torch.nn.Module]]:
    """Compile behind the gates, so that no compiler ever sees a greenlet switch; what of each
    denoiser is compiled."""
    # Blocks of one class share one function, but classes, lone rows and dtypes have each their own.
    torch._dynamo.config.recompile_limit = 128
    compiled = {}
    for gate in gates:
        if gate.stage is not Stage.DENOISE:
            continue
        blocks = _repeated_blocks(gate.module) if mode == "regional" else []
        for block in blocks:
            block.compile(dynamic=True)
        if not blocks:
            gate.real = torch.compile(gate.real, dynamic=True)
        compiled[gate.module] = blocks or [gate.module]
        kinds = sorted({type(block).__name__ for block in blocks})
        log.info(
            "%s: %s compiled",
            gate.name,
            f"{len(blocks)} blocks ({', '.join(kinds)}) are" if blocks else "is",
        )
    return compiled


def finish() -> None:
    """The warm-up is over: what would have to be compiled from here on runs eagerly instead."""
    torch.compiler.set_stance("eager_on_recompile")


def _repeated_blocks(denoiser: Any) -> list[Any]:
    """The blocks of which the denoiser has many: those it names itself, else the members of its
    lists of equal modules.

    Blocks of one class share one compiled function, which is why this compiles in seconds.
    """
    named = set(getattr(denoiser, "_repeated_blocks", None) or ())
    if named:
        return [module for module in denoiser.modules() if type(module).__name__ in named]
    lists = [
        child
        for child in denoiser.children()
        if isinstance(child, torch.nn.ModuleList) and len(child) > 1
    ]
    return [
        block for blocks in lists if len({type(block) for block in blocks}) == 1 for block in blocks
    ]
