"""From a checkpoint folder to a running embedded engine: weights, attention, cache, probe,
warm-up."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from atelier.errors import CheckpointError
from atelier.text.embedded import attention, fusion
from atelier.text.embedded.admission import Vocabulary
from atelier.text.embedded.capacity import (
    Capacity,
    cache_budget,
    layer_bytes,
    plan_capacity,
    split_by_window,
)
from atelier.text.embedded.probe import check_steps, reference_logits
from atelier.text.embedded.runner import ROW_BUCKETS, Chunk, Runner, layer_windows
from atelier.text.embedded.slots import SlotCache, ring_size

if TYPE_CHECKING:
    from atelier.settings import Settings

log = logging.getLogger(__name__)

SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


@dataclass(frozen=True)
class Loaded:
    """A model ready to be served."""

    model: Any
    vocabulary: Vocabulary
    runner: Runner
    capacity: Capacity

    def described(self) -> dict[str, Any]:
        """For the model's metadata."""
        return {
            "architecture": type(self.model).__name__,
            "dtype": str(self.runner.dtype).removeprefix("torch."),
            "device": str(self.runner.device),
            "context": self.capacity.context,
            "slots": self.capacity.slots,
            "cache_bytes": self.capacity.bytes,
        }


def load(path: Path, settings: Settings, device: torch.device, dtype: torch.dtype) -> Loaded:
    """Load tokenizer and weights, size the cache, and check that batched steps compute what the
    model does alone.

    Raises:
        CheckpointError: transformers cannot load it, or its layers cannot be batched.
        PlanError: the cache does not fit.
    """
    tokenizer, model = _load_weights(path, settings, device, dtype)
    config = model.config.get_text_config()
    limit = int(getattr(config, "max_position_embeddings", 0) or 4096)
    windows = layer_windows(config)
    window = max((one for one in windows if one is not None), default=0)
    ring = ring_size(window, settings.max_model_len or limit)
    whole, windowed = split_by_window(layer_bytes(model), windows, ring)
    budget = cache_budget(settings, device)
    capacity = plan_capacity(settings, device.type, limit, whole, budget, windowed)
    log.info(
        "keys and values: at most %.2f GiB of the %.2f GiB set aside (%d sequences of %d tokens)",
        capacity.bytes / 2**30,
        budget / 2**30,
        capacity.slots,
        capacity.context,
    )
    reference = reference_logits(model)
    runner = make_runner(model, capacity, compiled=settings.compile != "off")
    check_steps(runner, reference)
    generation = model.generation_config
    defaults = {
        name: float(value)
        for name in SAMPLING
        if (value := getattr(generation, name, None)) is not None
    }
    if generation.do_sample is False:  # said by the checkpoint, not merely left out
        defaults["temperature"] = 0.0
    vocabulary = Vocabulary(tokenizer, config.vocab_size, _eos(generation, tokenizer), defaults)
    return Loaded(model, vocabulary, runner, capacity)


def make_runner(model: Any, capacity: Capacity, compiled: bool = True) -> Runner:
    """The runner for a model whose reference logits are taken: it switches the model to grouped
    attention.

    On CUDA it also fuses small kernels; those that need a compiler only if `compiled`.
    """
    attention.register()
    model.set_attn_implementation(attention.NAME if model._supports_sdpa else "eager")
    cuda = model.device.type == "cuda"
    if cuda:
        log.info("%d norms run as one kernel each", fusion.fuse_norms(model))
        if compiled and fusion.compile_rotary(model):
            log.info("rotary embeddings are compiled into one kernel")
    windows = layer_windows(model.config.get_text_config())
    flash = (
        cuda
        and model._supports_sdpa
        and not any(windows)
        and model.dtype in (torch.float16, torch.bfloat16)
    )
    cache = SlotCache(capacity.slots, capacity.context, windows)
    return Runner(model, cache, graphs=cuda, flash=flash)


def warm_up(runner: Runner, lengths: list[int], prefill_tokens: int) -> None:
    """Run a prompt of each length and a few tokens of an answer."""
    spare = runner.cache.columns - 4
    for length in sorted({min(length, spare) for length in lengths}):
        for past in range(0, length, prefill_tokens):
            runner.prefill([Chunk(0, past, [0] * min(prefill_tokens, length - past))])
        runner.join(0, length)
        for step in range(3):
            runner.advance(runner.decode(1, length + step).argmax(-1))
        runner.leave(0)


def record_graphs(runner: Runner) -> None:
    """Record the decode step of every batch size, so that no request waits for it."""
    for rows in [bucket for bucket in ROW_BUCKETS if bucket <= runner.cache.slots]:
        runner.decode(rows, 0)
    torch.cuda.synchronize()


def _load_weights(
    path: Path, settings: Settings, device: torch.device, dtype: torch.dtype
) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options: dict[str, Any] = {
        "trust_remote_code": settings.trust_remote_code,
        "local_files_only": True,
    }
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, **options)
        if not getattr(tokenizer, "is_fast", False):
            raise CheckpointError(
                f"{path} has no fast tokenizer (tokenizer.json), which streaming needs"
            )
        model = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype,
            attn_implementation=None,
            device_map={"": device},
            quantization_config=_quantization(settings, dtype),
            use_safetensors=None if settings.allow_pickle else True,
            **options,
        )
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise CheckpointError(
            f"{path} cannot be loaded as a causal language model: {error}"
        ) from error
    return tokenizer, model.eval()


def _quantization(settings: Settings, dtype: torch.dtype) -> Any:
    """bitsandbytes for int8 and nf4; checkpoints that are packed already (AWQ, GPTQ) bring their
    own configuration."""
    if settings.quantization in ("none", "auto"):
        return None
    if settings.quantization not in ("int8", "nf4"):
        raise CheckpointError(
            f"QUANTIZATION={settings.quantization} is not for embedded language models: allowed:"
            " none, int8, nf4"
        )
    from transformers import BitsAndBytesConfig

    if settings.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
    )


def _eos(generation: Any, tokenizer: Any) -> frozenset[int]:
    ids = generation.eos_token_id
    many = ids if isinstance(ids, list) else [ids]
    return frozenset(
        int(token) for token in [*many, tokenizer.eos_token_id] if token is not None and token >= 0
    )
