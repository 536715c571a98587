"""Tiny checkpoints on disk for tests: real safetensors files, a few hundred bytes each."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

SHARDS = (
    "diffusion_pytorch_model-00001-of-00002.safetensors",
    "diffusion_pytorch_model-00002-of-00002.safetensors",
)


def write_json(path: Path, value: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def write_weights(path: Path, shapes: dict[str, tuple[int, ...]], dtype: str = "float32") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: np.zeros(shape, dtype) for name, shape in shapes.items()}, path)
    return path


def pipeline(root: Path, dtype: str = "float32") -> Path:
    """A folder laid out as Stable Diffusion's: UNet, text encoder, VAE, scheduler and tokenizer."""
    write_json(
        root / "model_index.json",
        {
            "_class_name": "StableDiffusionPipeline",
            "_diffusers_version": "0.42.1",
            "unet": ["diffusers", "UNet2DConditionModel"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "vae": ["diffusers", "AutoencoderKL"],
            "scheduler": ["diffusers", "DDIMScheduler"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "safety_checker": [None, None],
            "requires_safety_checker": False,
        },
    )
    write_json(root / "unet" / "config.json", {"sample_size": 64, "block_out_channels": [320, 640]})
    write_json(
        root / "vae" / "config.json",
        {"block_out_channels": [128, 256, 512, 512], "force_upcast": True},
    )
    write_json(root / "text_encoder" / "config.json", {"hidden_size": 8})
    write_json(root / "scheduler" / "scheduler_config.json", {})
    write_json(root / "tokenizer" / "tokenizer_config.json", {})
    write_weights(
        root / "unet" / "diffusion_pytorch_model.safetensors",
        {"conv.weight": (4, 2, 3, 3), "to_q.weight": (8, 8)},
        dtype,
    )
    write_weights(
        root / "vae" / "diffusion_pytorch_model.safetensors", {"conv.weight": (4, 4, 1, 1)}, dtype
    )
    write_weights(
        root / "text_encoder" / "model.safetensors",
        {"embeddings.token_embedding.weight": (16, 8), "q_proj.weight": (8, 8)},
        dtype,
    )
    return root


def sharded_unet(root: Path) -> Path:
    """The same pipeline with a UNet in two shards."""
    pipeline(root)
    (root / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    for name, tensor in zip(SHARDS, ("a.weight", "b.weight"), strict=True):
        write_weights(root / "unet" / name, {tensor: (8, 8)})
    index = {"metadata": {}, "weight_map": dict(zip(("a.weight", "b.weight"), SHARDS, strict=True))}
    write_json(root / "unet" / "diffusion_pytorch_model.safetensors.index.json", index)
    return root


def language_model(root: Path) -> Path:
    write_json(root / "config.json", {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"})
    write_json(root / "tokenizer.json", {})
    write_weights(
        root / "model.safetensors",
        {"model.embed_tokens.weight": (16, 8), "q_proj.weight": (8, 8)},
        "float16",
    )
    return root
