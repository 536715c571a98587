"""What only CUDA takes in the embedded language engine: causal and flash kernels, decode as graphs,
fused norms, steps that verify guesses; against the plain model on the same GPU. `make test-gpu`
runs this."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("no CUDA device here", allow_module_level=True)

from atelier.text.embedded.capacity import Capacity  # noqa: E402
from atelier.text.embedded.loading import make_runner, record_graphs  # noqa: E402
from atelier.text.embedded.probe import check_steps, reference_logits  # noqa: E402
from atelier.text.embedded.slots import SlotCache  # noqa: E402
from tests.text import families, guessing  # noqa: E402

TOLERANCE = {torch.float32: 5e-3, torch.bfloat16: 0.25}
"""Nats. A wrong window changes likelihoods by more than one; rounding of bfloat16 by 0.07."""

EXPERTS = 1.5
"""The same for experts in bfloat16, where rounding sends a token now and then to another expert: on
a processor the plain model in bfloat16 is up to 1.35 from itself in float32, by the median 0.1."""

USUAL = 0.06
"""Of bfloat16 by the median: a mask or window that is wrong moves most tokens, not a few."""


def bounds(family: str, dtype: Any) -> tuple[float, float]:
    """The largest and the median difference that count as rounding."""
    if dtype == torch.float32:
        return TOLERANCE[dtype], TOLERANCE[dtype]
    return EXPERTS if family == "mixtral" else TOLERANCE[dtype], USUAL


def runner_of(model: Any, slack: int, slots: int = 8) -> Any:
    runner = make_runner(model, Capacity(slots, families.CONTEXT, 0), compiled=False)
    runner.cache = SlotCache(slots, families.CONTEXT, runner.cache.windows, slack)
    return runner


@pytest.mark.parametrize("slack", [32, families.CONTEXT], ids=["ring", "whole"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", families.FAMILIES)
def test_answers_are_the_plain_models_below_at_and_beyond_window_and_chunk(
    family: str, dtype: Any, slack: int
) -> None:
    reference = families.make(family, "cuda", dtype)
    runner = runner_of(families.make(family, "cuda", dtype), slack)
    assert runner.graphs
    windowed = family in ("gemma3", "mistral")
    assert runner.flash == (dtype == torch.bfloat16 and not windowed)
    stream = torch.cuda.current_stream()
    record_graphs(runner)  # or not: experts in float32 cannot be recorded
    assert torch.cuda.current_stream() == stream
    engine = families.engine_of(runner)
    prompts = [families.prompt_of(length, length) for length in families.LENGTHS]
    try:
        answers = families.ask_all(engine, prompts, 24)
        again = families.ask_all(engine, [prompts[-1][:390] + prompts[0]], 24)
        scores = families.score_all(engine, prompts)
    finally:
        engine.close()
    families.check_scores(reference, prompts, scores, *bounds(family, dtype))
    families.check(reference, prompts, answers, *bounds(family, dtype))
    families.check(reference, [prompts[-1][:390] + prompts[0]], again, *bounds(family, dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", families.FAMILIES)
def test_the_check_at_the_start_passes(family: str, dtype: Any) -> None:
    model = families.make(family, "cuda", dtype)
    reference = reference_logits(model)
    check_steps(runner_of(model, 32), reference)


def test_compiled_rotary_embeddings_change_nothing() -> None:
    reference = families.make("gemma3", "cuda")
    model = families.make("gemma3", "cuda")
    runner = make_runner(model, Capacity(4, families.CONTEXT, 0), compiled=True)
    engine = families.engine_of(runner)
    prompts = [families.prompt_of(seed, 60 + 50 * seed) for seed in range(4)]
    try:
        answers = families.ask_all(engine, prompts, 16)
    finally:
        engine.close()
    families.check(reference, prompts, answers, TOLERANCE[torch.float32])


def test_a_small_prompt_beside_a_long_one_is_not_disturbed_by_the_padding() -> None:
    model, reference = families.make("gpt2", "cuda"), families.make("gpt2", "cuda")
    runner = runner_of(model, 32)
    engine = families.engine_of(runner)
    prompts = [families.prompt_of(1, 500), families.prompt_of(2, 2), families.prompt_of(3, 63)]
    try:
        answers = families.ask_all(engine, prompts, 8)
    finally:
        engine.close()
    families.check(reference, prompts, answers, TOLERANCE[torch.float32])


@pytest.mark.parametrize("drafter", ["oracle", "draft model"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", families.FAMILIES)
def test_guesses_change_nothing_with_graphs_and_flash(
    family: str, dtype: Any, drafter: str
) -> None:
    reference = families.make(family, "cuda", dtype)
    prompts = [families.prompt_of(length, length) for length in families.LENGTHS]

    def answers(speculation: Any) -> Any:
        runner = guessing.runner_of(families.make(family, "cuda", dtype), slots=8)
        assert runner.graphs
        assert runner.flash == (dtype == torch.bfloat16 and family not in ("gemma3", "mistral"))
        record_graphs(runner)
        engine = families.engine_of(runner, speculation)
        try:
            return families.ask_all(engine, prompts, 24)
        finally:
            engine.close()

    if drafter == "oracle":
        known = guessing.Oracle(prompts, [one.ids for one in answers(None)])
        speculation = guessing.Always(known, guessing.TOKENS)
    else:
        own = guessing.draft_model(family, "cuda", dtype, slots=8)
        record_graphs(own.runner)
        speculation = guessing.Always(own, guessing.TOKENS)
    guessed = answers(speculation)
    families.check(reference, prompts, guessed, *bounds(family, dtype))
    drafted, accepted = (sum(getattr(one, k) for one in guessed) for k in ("drafted", "accepted"))
    assert drafted > accepted > 0.2 * drafted


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", families.FAMILIES)
def test_the_check_at_the_start_passes_for_steps_with_guesses(family: str, dtype: Any) -> None:
    model = families.make(family, "cuda", dtype)
    reference = reference_logits(model)
    check_steps(guessing.runner_of(model), reference)


def test_a_seeded_answer_is_the_same_with_guesses() -> None:
    prompt = families.prompt_of(7, 50)

    def answer(speculation: Any) -> Any:
        runner = guessing.runner_of(families.make("llama", "cuda"))
        engine = families.engine_of(runner, speculation)
        try:
            return families.ask_all(engine, [prompt], 24, temperature=0.7, seed=3)[0]
        finally:
            engine.close()

    plain = answer(None)
    guessed = answer(guessing.Always(guessing.Oracle([prompt], [plain.ids]), guessing.TOKENS))
    assert guessed.ids == plain.ids
    assert guessed.accepted > 0
