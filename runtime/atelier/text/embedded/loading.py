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
from atelier.text.embedded.capacity import Capacity, cache_budget, plan_capacity, token_bytes
from atelier.text.embedded.runner import ROW_BUCKETS, Chunk, Runner
from atelier.text.embedded.slots import SlotCache

if TYPE_CHECKING:
    from atelier.settings import Settings

log = logging.getLogger(__name__)

SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")

PROBE_TOLERANCE = {torch.float32: 1e-2, torch.bfloat16: 0.5, torch.float16: 0.1}
"""Largest difference of logits, over their spread, that counts as rounding."""


@dataclass(frozen=True)
class Loaded:
    """A model ready to be served."""

    model: Any
    vocabulary: Vocabulary
    runner: Runner
    capacity: Capacity


def load(path: Path, settings: Settings, device: torch.device, dtype: torch.dtype) -> Loaded:
    """Load tokenizer and weights, size the cache, and check that batched steps compute what the
    model does alone.

    Raises:
        CheckpointError: transformers cannot load it, or its layers cannot be batched.
        PlanError: the cache does not fit.
    """
    tokenizer, model = _load_weights(path, settings, device, dtype)
    config = model.config.get_text_config()
    per_token = token_bytes(model)
    limit = int(getattr(config, "max_position_embeddings", 0) or 4096)
    capacity = plan_capacity(
        settings, device.type, limit, per_token, cache_budget(settings, device)
    )
    probe = torch.randint(
        0, config.vocab_size, (1, min(40, capacity.context - 8)), generator=_generator()
    )
    with torch.no_grad():
        reference = model(input_ids=probe.to(device)).logits[0].float()
    runner = make_runner(model, capacity, compiled=settings.compile != "off")
    _check(runner, probe[0].tolist(), reference)
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
    windows = getattr(model.config.get_text_config(), "sliding_window", None)
    flash = (
        cuda
        and model._supports_sdpa
        and windows is None
        and model.dtype in (torch.float16, torch.bfloat16)
    )
    return Runner(model, SlotCache(capacity.slots, capacity.context), graphs=cuda, flash=flash)


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


def _check(runner: Runner, prompt: list[int], reference: torch.Tensor) -> None:
    """Prefill a part next to a stranger, feed the rest token by token, and compare every step with
    the plain model.

    Raises:
        CheckpointError: the rows differ by more than rounding.
    """
    split, rows = len(prompt) // 2, min(2, runner.cache.slots)
    slot = rows - 1
    strangers = [Chunk(0, 0, prompt[: split // 2 + 1][::-1])] if slot else []
    got = [runner.prefill([*strangers, Chunk(slot, 0, prompt[:split])])[-1]]
    runner.join(slot, split)
    for position in range(split, len(prompt)):
        runner.tokens[slot] = prompt[position]
        got.append(runner.decode(rows, position)[slot])
        runner.advance(runner.tokens[:rows])
    runner.leave(slot)
    worst = float((torch.stack(got) - reference[split - 1 :]).abs().max() / reference.std())
    if not worst <= PROBE_TOLERANCE.get(runner.dtype, 0.5):
        raise CheckpointError(
            f"batched steps differ from the model alone by {worst:.3g} standard deviations of its"
            " logits, so the embedded engine would change its answers: set ENGINE=vllm or"
            " ENGINE=llamacpp"
        )
    log.info(
        "probe: batched steps agree with the model alone within %.2g of the logits' spread", worst
    )


def _eos(generation: Any, tokenizer: Any) -> frozenset[int]:
    ids = generation.eos_token_id
    many = ids if isinstance(ids, list) else [ids]
    return frozenset(
        int(token) for token in [*many, tokenizer.eos_token_id] if token is not None and token >= 0
    )


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
