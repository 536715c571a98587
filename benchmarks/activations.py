"""Counts the memory a forward pass needs beside its weights, for the factors in
`atelier/hardware/activations.py`.

Models of published size are built on torch's meta device, so nothing is allocated and any machine
can count them: at every operation the storages alive are added up. Fused attention is counted as
its output alone. What a real device adds (convolution workspaces, fragments) is the margin in
`activations.py`. Run: `python -m benchmarks.activations`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import diffusers
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GIB = 2**30
PIXELS = 1024
BFLOAT16 = torch.bfloat16


class LiveStorages(TorchDispatchMode):
    """Adds up the bytes of storages made under it and still alive; `peak` is the most there
    were."""

    def __init__(self, known: set[int]) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known = known

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if (
                isinstance(tensor, torch.Tensor)
                and tensor.untyped_storage()._cdata not in self._known
            ):
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        self._known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)

        def gone() -> None:
            self._known.discard(key)
            self.live -= size

        weakref.finalize(storage, gone)


def fused(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any
) -> torch.Tensor:
    """Attention as a fused kernel allocates it: the output, no scores."""
    return query.new_empty(*query.shape[:-1], value.shape[-1])


def empty(*shape: int) -> torch.Tensor:
    """A bfloat16 tensor without data."""
    return torch.empty(*shape, dtype=BFLOAT16, device="meta")


def sd15() -> tuple[Any, Callable[[Any], Any], int]:
    """UNet of Stable Diffusion 1.5; arrays of latent cells x 320 channels."""
    model = diffusers.UNet2DConditionModel(
        sample_size=64, cross_attention_dim=768, attention_head_dim=8
    )
    side = PIXELS // 8
    return (
        model,
        lambda m: m(empty(1, 4, side, side), empty(1), empty(1, 77, 768)),
        side * side * 320,
    )


def sdxl() -> tuple[Any, Callable[[Any], Any], int]:
    """UNet of SDXL; arrays of latent cells x 320 channels."""
    model = diffusers.UNet2DConditionModel(
        sample_size=128,
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=[1, 2, 10],
        cross_attention_dim=2048,
        attention_head_dim=[5, 10, 20],
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
        use_linear_projection=True,
    )
    side, added = PIXELS // 8, {"text_embeds": empty(1, 1280), "time_ids": empty(1, 6)}

    def call(model):
        rows = empty(1, 4, side, side), empty(1), empty(1, 77, 2048)
        return model(*rows, added_cond_kwargs=added)

    return model, call, side * side * 320


def sd35_medium() -> tuple[Any, Callable[[Any], Any], int]:
    """Transformer of Stable Diffusion 3.5 medium; arrays of tokens x 1,536."""
    model = diffusers.SD3Transformer2DModel(
        sample_size=128,
        num_layers=24,
        attention_head_dim=64,
        num_attention_heads=24,
        joint_attention_dim=4096,
        caption_projection_dim=1536,
        pooled_projection_dim=2048,
        pos_embed_max_size=384,
        qk_norm="rms_norm",
        dual_attention_layers=tuple(range(13)),
    )
    side = PIXELS // 8
    call = lambda m: m(empty(1, 16, side, side), empty(1, 333, 4096), empty(1, 2048), empty(1))  # noqa: E731
    return model, call, ((PIXELS // 16) ** 2 + 333) * 1536


def flux() -> tuple[Any, Callable[[Any], Any], int]:
    """Transformer of FLUX.1-dev; arrays of tokens x 3,072."""
    tokens = (PIXELS // 16) ** 2
    arguments = {
        "hidden_states": empty(1, tokens, 64),
        "encoder_hidden_states": empty(1, 512, 4096),
        "pooled_projections": empty(1, 768),
        "timestep": empty(1),
        "guidance": empty(1),
        "img_ids": empty(tokens, 3),
        "txt_ids": empty(512, 3),
    }
    return (
        diffusers.FluxTransformer2DModel(guidance_embeds=True),
        lambda m: m(**arguments),
        (tokens + 512) * 3072,
    )


def qwen() -> tuple[Any, Callable[[Any], Any], int]:
    """Transformer of Qwen-Image; arrays of tokens x 3,072."""
    side = PIXELS // 16
    arguments = {
        "hidden_states": empty(1, side * side, 64),
        "encoder_hidden_states": empty(1, 512, 3584),
        "timestep": empty(1),
        "img_shapes": [[(1, side, side)]],
    }
    return (
        diffusers.QwenImageTransformer2DModel(),
        lambda m: m(**arguments),
        (side * side + 512) * 3072,
    )


def sd_decoder() -> tuple[Any, Callable[[Any], Any], int]:
    """The VAE decoder of the Stable Diffusion family; arrays of pixels x 128 channels."""
    blocks = {
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
    }
    model = diffusers.AutoencoderKL(
        block_out_channels=(128, 256, 512, 512), layers_per_block=2, **blocks
    )
    return model, lambda m: m.decode(empty(1, 4, PIXELS // 8, PIXELS // 8)), PIXELS * PIXELS * 128


def qwen_decoder() -> tuple[Any, Callable[[Any], Any], int]:
    """The VAE decoder of Qwen-Image; arrays of pixels x 96 channels."""
    latent = empty(1, 16, 1, PIXELS // 8, PIXELS // 8)
    return diffusers.AutoencoderKLQwenImage(), lambda m: m.decode(latent), PIXELS * PIXELS * 96


def main() -> None:
    """Print parameters, peak bytes and the factor of each model."""
    torch.nn.functional.scaled_dot_product_attention = fused  # type: ignore[assignment]
    print(
        f"{'model':<14}{'parameters':>16}{'peak GiB':>10}{'arrays':>8}   bfloat16,"
        f" {PIXELS}x{PIXELS}, one row"
    )
    for build in (sd15, sdxl, sd35_medium, flux, qwen, sd_decoder, qwen_decoder):
        with torch.device("meta"):
            model, call, elements = build()
        model.to(BFLOAT16).eval()
        known = {one.untyped_storage()._cdata for one in [*model.parameters(), *model.buffers()]}
        with torch.no_grad(), LiveStorages(known) as storages:
            call(model)
        parameters = sum(one.numel() for one in model.parameters())
        arrays = storages.peak / (elements * BFLOAT16.itemsize)
        print(f"{build.__name__:<14}{parameters:>16,}{storages.peak / GIB:>10.3f}{arrays:>8.1f}")


if __name__ == "__main__":
    main()
