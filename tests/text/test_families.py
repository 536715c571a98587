"""The embedded engine against the plain model, family by family, at prompts that cross window,
chunk and ring. `tests/gpu/test_text.py` runs the same table on a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from atelier.text.embedded.capacity import Capacity
from atelier.text.embedded.loading import make_runner
from atelier.text.embedded.probe import check_steps, reference_logits
from atelier.text.embedded.runner import Runner
from atelier.text.embedded.slots import SlotCache
from tests.text import families, guessing

torch.set_num_threads(1)


def runner_of(model: Any, slots: int = 4, slack: int = 32) -> Any:
    """A runner whose rings are short enough to wrap within the context."""
    runner = make_runner(model, Capacity(slots, families.CONTEXT, 0))
    runner.cache = SlotCache(slots, families.CONTEXT, runner.cache.windows, slack)
    return runner


@pytest.mark.parametrize("family", families.FAMILIES)
def test_answers_are_the_plain_models_below_at_and_beyond_window_and_chunk(family: str) -> None:
    reference = families.make(family, "cpu")
    runner = runner_of(families.make(family, "cpu"))
    assert bool(runner.cache.ring) == (family in ("gemma3", "mistral"))
    engine = families.engine_of(runner)
    prompts = [families.prompt_of(length, length) for length in families.LENGTHS]
    try:
        answers = families.ask_all(engine, prompts, 20)
    finally:
        engine.close()
    families.check(reference, prompts, answers, 1e-3)


def test_steps_that_cannot_be_recorded_run_plainly(caplog: pytest.LogCaptureFixture) -> None:
    """As of experts in float32 on a GPU; here recording fails because there is none. The check at
    the start finds it out, and nobody tries again."""
    reference, model = (families.make("mixtral", "cpu") for _ in range(2))
    logits = reference_logits(model)
    runner = runner_of(model)
    runner.graphs = True
    check_steps(runner, logits)
    engine = families.engine_of(runner)
    prompts = [families.prompt_of(seed, 20) for seed in range(3)]
    try:
        answers = families.ask_all(engine, prompts, 8)
    finally:
        engine.close()
    families.check(reference, prompts, answers, 1e-3)
    assert not runner.graphs
    told = [one.getMessage() for one in caplog.records if "CUDA graphs" in one.getMessage()]
    assert len(told) == 1 and told[0].startswith("decode steps are not recorded as CUDA graphs: ")


def test_the_check_at_the_start_keeps_what_a_replay_overwrites(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A recorded step writes its logits to one place, and in float32 nothing copies them."""
    written: dict[tuple[int, int], torch.Tensor] = {}

    def replayed(runner: Runner, rows: int, longest: int, width: int) -> torch.Tensor:
        logits = runner._decode(rows, min(longest + 8, runner.cache.columns), width)
        place = written.setdefault((rows, width), torch.empty_like(logits))
        return place.copy_(logits)

    monkeypatch.setattr(Runner, "_replayed", replayed)
    model = families.make("llama", "cpu")
    reference = reference_logits(model)
    runner = runner_of(model)
    runner.graphs = True
    check_steps(runner, reference)
    guessing_runner = guessing.runner_of(model)
    guessing_runner.graphs = True
    check_steps(guessing_runner, reference)
    assert len(written) == 2  # one step of one token, one of several


def test_steps_that_find_no_memory_to_be_recorded_are_not_hidden(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runner = runner_of(families.make("llama", "cpu"))
    runner.graphs = True

    def short(*_: Any) -> None:
        raise torch.OutOfMemoryError("no memory for a graph")

    monkeypatch.setattr(runner, "_capture", short)
    with pytest.raises(torch.OutOfMemoryError, match="no memory for a graph"):
        runner.decode(1, 0)
    assert runner.graphs


@pytest.mark.parametrize("family", families.FAMILIES)
def test_scores_of_prompts_are_the_plain_models_across_window_and_chunk(family: str) -> None:
    reference = families.make(family, "cpu")
    engine = families.engine_of(runner_of(families.make(family, "cpu")))
    prompts = [families.prompt_of(length, length) for length in families.LENGTHS]
    try:
        families.ask_all(engine, prompts[-2:], 4)  # a slot that holds keys already
        scores = families.score_all(engine, prompts)
    finally:
        engine.close()
    families.check_scores(reference, prompts, scores, 1e-3)


@pytest.mark.parametrize("family", ["gemma3", "mistral", "llama"])
def test_a_known_beginning_is_reused_only_where_the_window_still_holds_it(family: str) -> None:
    reference = families.make(family, "cpu")
    engine = families.engine_of(runner_of(families.make(family, "cpu"), slots=2))
    first = families.prompt_of(1, 200)
    near = first[:190] + families.prompt_of(2, 40)  # within the slack of what was said
    far = first[:100] + families.prompt_of(3, 60)  # the window before it is gone from the ring
    try:
        said = [families.ask_all(engine, [prompt], 8)[0] for prompt in (first, near, far)]
    finally:
        engine.close()
    assert [one.cached for one in said] == [0, 190, 100 if family == "llama" else 0]
    families.check(reference, [first, near, far], said, 1e-3)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_the_check_at_the_start_passes_and_leaves_the_window_as_it_was(family: str) -> None:
    model = families.make(family, "cpu")
    window = getattr(model.config, "sliding_window", None)
    reference = reference_logits(model)
    check_steps(runner_of(model), reference)
    assert getattr(model.config, "sliding_window", None) == window


def test_the_check_at_the_start_sees_a_window_that_is_not_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from atelier.errors import CheckpointError
    from atelier.text.embedded import runner as runner_module

    model = families.make("gemma3", "cpu")
    reference = reference_logits(model)
    masked = runner_module.additive_mask
    monkeypatch.setattr(
        runner_module,
        "additive_mask",
        lambda positions, columns, window, dtype: masked(positions, columns, None, dtype),
    )
    with pytest.raises(CheckpointError, match="standard deviations"):
        check_steps(runner_of(model), reference)


def test_a_layer_with_a_window_keeps_its_window_and_nobody_pays_for_an_unused_context() -> None:
    model = families.make("gemma3", "cpu")
    engine = families.engine_of(runner_of(model, slots=4))
    families.ask_all(engine, [families.prompt_of(1, 400)], 4)
    cache = engine._batch.runner.cache
    engine.close()
    columns = sorted(keys.shape[2] for keys in cache._keys.values())
    ring = families.WINDOW + 32
    assert columns == [ring + 1] * 3 + [families.CONTEXT + 1]
