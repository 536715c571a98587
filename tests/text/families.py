"""Families of language models with small random weights, and what the embedded engine is compared
on: greedy tokens and likelihoods of the plain model on the same device.

Needs torch and transformers alone, so that it runs on a bare machine with a GPU.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from tokenizers import Tokenizer as Words
from tokenizers import models
from torch import Tensor
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from atelier.events import Failed, Finished, PromptRead, Token
from atelier.streams import EventStream
from atelier.text.embedded.admission import ContextLimits, Vocabulary
from atelier.text.embedded.engine import TransformersEngine
from atelier.text.embedded.runner import Runner
from atelier.text.embedded.speculation import Speculation
from atelier.text.request import make_request

CONTEXT = 512
VOCABULARY = 320
WINDOW = 48
CHUNK = 64
LENGTHS = (3, 20, WINDOW - 1, WINDOW, WINDOW + 1, CHUNK, CHUNK + 1, 100, 2 * CHUNK, 300, 401)
"""Prompts below, at and beyond the window, the chunk, and the ring of the layers with a window."""

SHARED: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.15,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}

FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHARED)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SHARED, head_dim=32)),
    "gemma3": lambda: Gemma3ForCausalLM(
        Gemma3TextConfig(
            **SHARED,
            head_dim=32,
            query_pre_attn_scalar=32,
            tie_word_embeddings=False,  # else the scaled embeddings drown what attention says
            sliding_window=WINDOW,
            layer_types=["sliding_attention"] * 2 + ["full_attention", "sliding_attention"],
        )
    ),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SHARED, sliding_window=WINDOW)),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY,
            n_positions=CONTEXT,
            n_embd=128,
            n_layer=3,
            n_head=4,
            initializer_range=0.15,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=2,
        )
    ),
    "mixtral": lambda: MixtralForCausalLM(
        MixtralConfig(**SHARED, num_local_experts=4, num_experts_per_tok=2, sliding_window=None)
    ),
}


def tokenizer() -> Any:
    """Words w0, w1, ... for the ids: engines turn what they say into text."""
    words = Words(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    return PreTrainedTokenizerFast(tokenizer_object=words)


@dataclass
class Answer:
    """Tokens with their likelihoods."""

    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    cached: int = 0
    drafted: int = 0
    accepted: int = 0


def make(family: str, device: str, dtype: torch.dtype = torch.float32) -> Any:
    """The family's model with weights of seed 0."""
    torch.manual_seed(0)
    return FAMILIES[family]().to(device, dtype).eval()


def engine_of(runner: Runner, speculation: Speculation | None = None) -> TransformersEngine:
    """An engine over the runner, with prompts in chunks of CHUNK."""
    vocabulary = Vocabulary(tokenizer(), VOCABULARY, frozenset())
    limits = ContextLimits(CONTEXT, queue=100, timeout=300, prefill_tokens=CHUNK)
    return TransformersEngine(runner, vocabulary, limits, speculation)


def prompt_of(seed: int, length: int) -> list[int]:
    """Random tokens."""
    drawn = torch.randint(3, VOCABULARY, (length,), generator=torch.Generator().manual_seed(seed))
    return [int(token) for token in drawn]


async def ask(engine: TransformersEngine, prompt: list[int], count: int, **fields: Any) -> Answer:
    """A greedy answer of `count` tokens, unless `fields` say otherwise."""
    wanted = {"temperature": 0, "max_tokens": count, "logprobs": 1, "ignore_eos": True} | fields
    request = make_request(prompt_ids=prompt, **wanted)
    stream: EventStream = engine.submit(request, prompt)
    answer = Answer()
    async for event in stream:
        assert not isinstance(event, Failed), event.error
        if isinstance(event, Token):
            answer.ids += event.ids
            answer.logprobs += [likelihood.logprob for likelihood in event.likelihoods]
        if isinstance(event, Finished) and event.usage is not None:
            usage = event.usage
            answer.cached = usage.cached
            answer.drafted, answer.accepted = usage.drafted, usage.accepted
    return answer


def ask_all(
    engine: TransformersEngine, prompts: list[list[int]], count: int, **fields: Any
) -> list[Answer]:
    """Greedy answers of all prompts at once, unless `fields` say otherwise."""

    async def all_of_them() -> list[Answer]:
        return await asyncio.gather(*(ask(engine, one, count, **fields) for one in prompts))

    return asyncio.run(all_of_them())


def score_all(engine: TransformersEngine, prompts: list[list[int]]) -> list[list[float]]:
    """Log probabilities of all prompts, each but for its first token, computed at once."""

    async def score(prompt: list[int]) -> list[float]:
        request = make_request(prompt_ids=prompt, max_tokens=0, prompt_logprobs=0)
        events = [event async for event in engine.submit(request, prompt)]
        (read,) = [event for event in events if isinstance(event, PromptRead)]
        return [likelihood.logprob for likelihood in read.likelihoods]

    async def all_of_them() -> list[list[float]]:
        return await asyncio.gather(*map(score, prompts))

    return asyncio.run(all_of_them())


@torch.no_grad()
def check_scores(
    model: Any,
    prompts: list[list[int]],
    scores: list[list[float]],
    tolerance: float,
    usual: float | None = None,
) -> None:
    """Every log probability of a prompt is the plain model's. `usual` bounds the median too."""
    for prompt, told in zip(prompts, scores, strict=True):
        ids = torch.tensor([prompt], device=model.device)
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
        own = logits.log_softmax(1).gather(1, ids[0, 1:, None])[:, 0]
        apart = (own - torch.tensor(told, device=model.device)).abs()
        assert float(apart.max()) <= tolerance, (len(prompt), apart)
        assert float(apart.median()) <= (usual or tolerance), (len(prompt), apart)


@torch.no_grad()
def plain(model: Any, prompt: list[int], answer: Answer) -> tuple[Tensor, Tensor]:
    """What the plain model says of each token of an answer: the margin by which its own greedy
    token is ahead of it (0: the same), and the token's log probability."""
    ids = torch.tensor([prompt + answer.ids], device=model.device)
    logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
    said = torch.tensor(answer.ids, device=model.device)[:, None]
    chosen = logits.gather(1, said)[:, 0]
    return logits.amax(1) - chosen, logits.log_softmax(1).gather(1, said)[:, 0]


def check(
    model: Any,
    prompts: list[list[int]],
    answers: list[Answer],
    tolerance: float,
    usual: float | None = None,
) -> None:
    """Every token is the plain model's greedy token (ties within `tolerance`), with its log
    probability. `usual` bounds the median difference too: a mask that is wrong moves most."""
    for prompt, answer in zip(prompts, answers, strict=True):
        margin, logprobs = plain(model, prompt, answer)
        told = torch.tensor(answer.logprobs, device=logprobs.device)
        apart = (logprobs - told).abs()
        assert float(margin.max()) <= tolerance, (len(prompt), margin)
        assert float(apart.max()) <= tolerance, (len(prompt), logprobs, told)
        assert float(apart.median()) <= (usual or tolerance), (len(prompt), apart)
