"""How much memory a run takes, computed before it begins.

Weights come from the checkpoint's headers, activations from `activations`: both are counted, not
guessed.
"""

from __future__ import annotations

import json
import os
import struct
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from atelier.hardware.container import host_memory
from atelier_training.dreambooth.activations import activation_bytes, empty_denoiser
from atelier_training.dreambooth.adaptation import repeated_blocks
from atelier_training.dreambooth.errors import OptionError
from atelier_training.dreambooth.families import Family
from atelier_training.dreambooth.options import TrainOptions

CONTEXT_BYTES = 600 * 2**20  # what a CUDA context and its libraries take
NF4_BYTES = 0.5625  # four bits, and one float32 scale for 64 weights
STATE_BYTES = {"adamw": 8, "adamw8bit": 2, "prodigy": 16}


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes in one process by what they are for, and on disk. `encoding` is the largest stage
    before training: class pictures, text, or the VAE; `disk` the checkpoints and the result."""

    weights: int
    masters: int
    gradients: int
    optimizer: int
    activations: int
    encoding: int
    disk: int

    @property
    def training(self) -> int:
        return self.weights + self.masters + self.gradients + self.optimizer + self.activations

    @property
    def peak(self) -> int:
        """Encoding and training follow each other; the larger counts."""
        return max(self.training, self.encoding) + CONTEXT_BYTES

    def lines(self) -> list[str]:
        parts = [
            (part.name, getattr(self, part.name)) for part in fields(self) if part.name != "disk"
        ]
        parts += [("peak", self.peak)]
        return [f"{name:<12} {value / 2**30:8.2f} GiB" for name, value in parts]


def require_memory(
    family: Family, options: TrainOptions, device: torch.device, dtype: torch.dtype
) -> MemoryEstimate:
    """The estimate for one of the processes that torchrun or accelerate started.

    Raises:
        OptionError: it is above what the device has free; the message says what to change.
    """
    estimate = estimate_memory(family, options, dtype, int(os.environ.get("WORLD_SIZE", "1")))
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else host_memory()[1]
    if options.check_memory and estimate.peak > free:
        raise OptionError(
            f"about {estimate.peak / 2**30:.1f} GiB are needed and {free / 2**30:.1f} GiB are free"
            f" on {device}:\n"
            + "\n".join(estimate.lines())
            + "\nuse gradient_checkpointing=true, a lower resolution or batch_size, method=lora,"
            " quantize=nf4, shard=true on several GPUs, or check_memory=false to try all the same"
        )
    return estimate


def estimate_memory(
    family: Family, options: TrainOptions, dtype: torch.dtype, processes: int = 1
) -> MemoryEstimate:
    """What `options` take on any device, in each of `processes`; nothing is loaded."""
    denoiser = empty_denoiser(family, options)
    width = dtype.itemsize
    frozen = sum(p.numel() for p in denoiser.parameters() if not p.requires_grad)
    trained = sum(p.numel() for p in denoiser.parameters() if p.requires_grad)
    encoders = {
        n: parameters_in(family.model / n)
        for n in family.text_parts
        if n.startswith("text_encoder")
    }
    on_device = sum(encoders.values()) if options.train_text_encoder else 0
    if options.train_text_encoder and options.method == "full":
        trained += sum(encoders[name] for name in family.trainable_encoders)
    everything = sum(parameters_in(family.model / name) for name in family.components)
    vae = parameters_in(family.model / "vae") * 4
    weights = int(frozen * (NF4_BYTES if options.quantize == "nf4" else width)) + trained * width
    masters, state = trained * 4, trained * STATE_BYTES[options.optimizer]
    parts = processes if options.shard else 1
    gathered = _gathered(denoiser) * width if options.shard else 0
    result = 2 * weights if options.method == "full" else masters
    return MemoryEstimate(
        weights=weights // parts + on_device * width + gathered,
        masters=masters // parts,
        gradients=masters // parts + (gathered if options.method == "full" else 0),
        optimizer=state // parts,
        activations=activation_bytes(family, options, denoiser, dtype),
        encoding=(
            everything * width
            if options.with_prior
            else max(vae, *(n * width for n in encoders.values()))
        ),
        # One checkpoint more while the newest is written.
        disk=(masters + state) * (options.keep_checkpoints + 1) + result + 64 * 2**20,
    )


def _gathered(denoiser: Any) -> int:
    """Number of weights that a sharded denoiser holds whole at a time: a block, the next, and what
    is in no block."""
    blocks = [sum(p.numel() for p in block.parameters()) for block in repeated_blocks(denoiser)]
    outside = sum(p.numel() for p in denoiser.parameters()) - sum(blocks)
    return outside + 2 * max(blocks, default=0)


def parameters_in(folder: Path) -> int:
    """Number of weights in the safetensors files of a component, read from their headers."""
    files = [
        path for path in folder.glob("*.safetensors") if not path.name.count(".fp16.")
    ] or list(folder.glob("*.safetensors"))
    return sum(_parameters(path) for path in files)


def _parameters(path: Path) -> int:
    """The header is a length (8 bytes, little endian) and JSON of that length."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    shapes = [entry["shape"] for name, entry in header.items() if name != "__metadata__"]
    return sum(torch.Size(shape).numel() for shape in shapes)
