"""From a checkpoint folder to a running embedded engine: weights, attention, cache, probe, warm-up,
and the draft model, if there is one."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from atelier.errors import CheckpointError
from atelier.sources.checkpoint.folder import inspect
from atelier.text.embedded import attention, fusion
from atelier.text.embedded.admission import Vocabulary
from atelier.text.embedded.capacity import (
    Capacity,
    cache_budget,
    layer_bytes,
    plan_capacity,
    split_by_window,
)
from atelier.text.embedded.draft_model import DraftModel, check_tokenizer
from atelier.text.embedded.fast_tokenizer import load_fast_tokenizer
from atelier.text.embedded.packed_linear import doubled_bytes, pack_linears
from atelier.text.embedded.probe import check_steps, reference_logits
from atelier.text.embedded.prompt_lookup import PromptLookup
from atelier.text.embedded.runner import ROW_BUCKETS, Chunk, Runner
from atelier.text.embedded.slots import SlotCache, ring_size
from atelier.text.embedded.speculation import MOST_ROWS, Drafter, Speculation
from atelier.text.embedded.windows import layer_windows

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
    speculation: Speculation | None = None

    @property
    def runners(self) -> list[Runner]:
        """The model's, and the draft model's."""
        drafter = self.speculation.drafter if self.speculation is not None else None
        return [self.runner, *([drafter.runner] if isinstance(drafter, DraftModel) else [])]

    def described(self) -> dict[str, Any]:
        """For the model's metadata."""
        told = {"speculation": self.speculation.described()} if self.speculation else {}
        return told | {
            "architecture": type(self.model).__name__,
            "dtype": str(self.runner.dtype).removeprefix("torch."),
            "device": str(self.runner.device),
            "context": self.capacity.context,
            "slots": self.capacity.slots,
            "cache_bytes": self.capacity.bytes,
        }


def load(
    path: Path,
    settings: Settings,
    device: torch.device,
    dtype: torch.dtype,
    when_read: Callable[[], None] = lambda: None,
) -> Loaded:
    """Load tokenizer and weights, size the cache, and check that batched steps compute what the
    model does alone. `when_read` is called as soon as nothing at `path` is needed any more.

    Raises:
        CheckpointError: transformers cannot load it, its layers cannot be batched, or the draft
            model has another tokenizer.
        PlanError: the cache does not fit.
        SourceError: the draft model cannot be fetched.
    """
    tokenizer, model = _load_weights(path, settings, device, dtype)
    when_read()
    draft = _load_draft(settings, device, dtype, tokenizer)
    config = model.config.get_text_config()
    limit = int(getattr(config, "max_position_embeddings", 0) or 4096)
    windows = layer_windows(config)
    window = max((one for one in windows if one is not None), default=0)
    ring = ring_size(window, settings.max_model_len or limit)
    whole, windowed = split_by_window(layer_bytes(model), windows, ring)
    whole += sum(layer_bytes(draft)) if draft is not None else 0
    budget = cache_budget(settings, device)
    if device.type == "cpu":
        budget = max(0, budget - doubled_bytes(model))
    capacity = plan_capacity(settings, device.type, limit, whole, budget, windowed)
    log.info(
        "keys and values: at most %.2f GiB of the %.2f GiB set aside (%d sequences of %d tokens)",
        capacity.bytes / 2**30,
        budget / 2**30,
        capacity.slots,
        capacity.context,
    )
    reference = reference_logits(model)
    compiled = settings.compile != "off"
    guessing = settings.prompt_lookup or draft is not None
    drafts = settings.num_speculative_tokens if guessing else 0
    runner = make_runner(model, capacity, compiled, drafts)
    check_steps(runner, reference)
    drafter: Drafter = PromptLookup()
    if draft is not None:
        drafter = _draft_model(draft, capacity, compiled, drafts)
    generation = model.generation_config
    defaults = {
        name: float(value)
        for name in SAMPLING
        if (value := getattr(generation, name, None)) is not None
    }
    if generation.do_sample is False:  # said by the checkpoint, not merely left out
        defaults["temperature"] = 0.0
    vocabulary = Vocabulary(tokenizer, config.vocab_size, _eos(generation, tokenizer), defaults)
    speculation = Speculation(drafter, drafts) if drafts else None
    return Loaded(model, vocabulary, runner, capacity, speculation)


def make_runner(model: Any, capacity: Capacity, compiled: bool = True, drafts: int = 0) -> Runner:
    """The runner for a model whose reference logits are taken: it switches the model to grouped
    attention. At most `drafts` guesses are verified behind a row's next token.

    On CUDA it also fuses small kernels, those that need a compiler only if `compiled`; on a CPU it
    packs large matrices.
    """
    attention.register()
    model.set_attn_implementation(attention.NAME if model._supports_sdpa else "eager")
    cuda = model.device.type == "cuda"
    if cuda:
        log.info("%d norms run as one kernel each", fusion.fuse_norms(model))
        if compiled and fusion.compile_rotary(model):
            log.info("rotary embeddings are compiled into one kernel")
    elif model.device.type == "cpu":
        log.info("%d large matrices are packed", pack_linears(model))
    windows = layer_windows(model.config.get_text_config())
    flash = (
        cuda
        and model._supports_sdpa
        and not any(windows)
        and model.dtype in (torch.float16, torch.bfloat16)
    )
    cache = SlotCache(capacity.slots, capacity.context, windows, drafts=drafts)
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


def record_graphs(*runners: Runner) -> None:
    """Record the decode step of every batch size, and the step that verifies guesses, so that no
    request waits for it."""
    for runner in (one for one in runners if one.graphs):
        for rows in [bucket for bucket in ROW_BUCKETS if bucket <= runner.cache.slots]:
            runner.decode(rows, 0)
            if runner.cache.drafts and rows <= MOST_ROWS:
                runner.verify([[] for _ in range(rows)], 0)
    torch.cuda.synchronize()


def _load_draft(
    settings: Settings, device: torch.device, dtype: torch.dtype, tokenizer: Any
) -> Any:
    """The model that DRAFT_MODEL_ID names, or None."""
    if not settings.draft_model_id:
        return None
    from atelier.sources import fetch_draft

    log.info("the draft model is %s", settings.draft_model_id)
    path, plain = fetch_draft(settings), settings.model_copy(update={"variant": ""})
    own, draft = _load_weights(path, plain, device, dtype)
    check_tokenizer(tokenizer, own, settings.draft_model_id)
    return draft


def _draft_model(model: Any, capacity: Capacity, compiled: bool, drafts: int) -> DraftModel:
    config = model.config.get_text_config()
    limit = int(getattr(config, "max_position_embeddings", 0) or capacity.context)
    reference = reference_logits(model)
    own = Capacity(capacity.slots, min(capacity.context, limit), 0)
    runner = make_runner(model, own, compiled, drafts)
    check_steps(runner, reference)
    return DraftModel(runner, config.vocab_size)


def _load_weights(
    path: Path, settings: Settings, device: torch.device, dtype: torch.dtype
) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {
        "trust_remote_code": settings.trust_remote_code,
        "local_files_only": True,
    }
    checkpoint = inspect(path, variant=settings.variant, allow_pickle=settings.allow_pickle)
    checkpoint.check()
    try:
        tokenizer = load_fast_tokenizer(path, **options)
        model = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype,
            attn_implementation=None,
            device_map={"": device},
            quantization_config=_quantization(settings, dtype),
            variant=checkpoint.variant or None,
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
