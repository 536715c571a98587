"""The embedded engine by itself: the same tokens as the model alone, whoever else is in the
batch."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from atelier.errors import Busy, Draining, InvalidRequest
from atelier.events import Failed, Finished, Started, Token
from atelier.streams import EventStream
from atelier.text.embedded.admission import ContextLimits, Vocabulary
from atelier.text.embedded.capacity import Capacity
from atelier.text.embedded.engine import TransformersEngine
from atelier.text.embedded.loading import make_runner
from atelier.text.request import make_request

torch.set_num_threads(1)


@dataclass
class Said:
    """What a stream said."""

    ids: list[int] = field(default_factory=list)
    last: Any = None
    order: list[str] = field(default_factory=list)


async def read(stream: EventStream) -> Said:
    said = Said()
    async for event in stream:
        said.order.append(type(event).__name__)
        if isinstance(event, Token):
            said.ids += event.ids
        said.last = event
    return said


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()


@pytest.fixture
def engine(checkpoint: Path) -> Iterator[TransformersEngine]:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    runner = make_runner(model, Capacity(6, 256, 0))
    vocabulary = Vocabulary(tokenizer, model.config.vocab_size, frozenset())
    made = TransformersEngine(
        runner, vocabulary, ContextLimits(context=256, queue=10, timeout=60, prefill_tokens=64)
    )
    yield made
    made.close()


def greedy(reference: Any, prompt: list[int], count: int) -> list[int]:
    ids = torch.tensor([prompt])
    said = reference.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=count,
        min_new_tokens=count,
        do_sample=False,
    )
    return said[0, len(prompt) :].tolist()


def prompt_of(seed: int, length: int) -> list[int]:
    return torch.randint(0, 250, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def ask(
    engine: TransformersEngine, prompt: list[int], count: int = 12, **fields: Any
) -> EventStream:
    fields = {"temperature": 0, "max_tokens": count} | fields
    return engine.submit(make_request(prompt_ids=prompt, **fields), prompt)


async def test_more_requests_than_slots_of_many_lengths_get_the_models_own_tokens(
    engine: TransformersEngine, reference: Any
) -> None:
    prompts = [
        prompt_of(seed, length) for seed, length in enumerate((1, 5, 40, 64, 65, 130, 200, 17))
    ]
    said = await asyncio.gather(*(read(ask(engine, prompt)) for prompt in prompts))
    assert [each.ids for each in said] == [greedy(reference, prompt, 12) for prompt in prompts]


async def test_a_request_joins_a_running_batch_and_leaves_before_it_ends(
    engine: TransformersEngine,
) -> None:
    long = asyncio.create_task(read(ask(engine, prompt_of(1, 8), 200)))
    await asyncio.sleep(0.05)
    short = await read(ask(engine, prompt_of(2, 8), 4))
    assert len(short.ids) == 4
    assert not long.done()
    assert len((await long).ids) == 200


async def test_a_known_beginning_is_copied_and_changes_nothing(
    engine: TransformersEngine, reference: Any
) -> None:
    first = prompt_of(3, 100)
    await read(ask(engine, first))
    second = first[:70] + prompt_of(4, 20)
    said = await read(ask(engine, second))
    assert said.last.usage.cached == 70
    assert said.ids == greedy(reference, second, 12)


async def test_a_seeded_draw_does_not_depend_on_the_neighbours(engine: TransformersEngine) -> None:
    alone = await read(ask(engine, prompt_of(5, 30), temperature=1.0, seed=9, top_p=0.9))
    crowd = [
        read(ask(engine, prompt_of(seed, 30), temperature=1.3, top_k=7)) for seed in range(10, 14)
    ]
    again, *_ = await asyncio.gather(
        read(ask(engine, prompt_of(5, 30), temperature=1.0, seed=9, top_p=0.9)), *crowd
    )
    assert alone.ids == again.ids


async def test_choices_of_one_request_compute_the_prompt_once(engine: TransformersEngine) -> None:
    before = len(engine._batch.history)
    said = await read(ask(engine, prompt_of(6, 120), count=5, n=4, temperature=1.0, seed=1))
    assert said.last.usage.generated == 20
    assert said.last.reasons == ("length",) * 4
    assert before == 6


async def test_top_k_of_one_is_greedy_and_a_bias_forces_a_token(
    engine: TransformersEngine, reference: Any
) -> None:
    prompt = prompt_of(7, 20)
    said = await read(ask(engine, prompt, temperature=1.5, top_k=1))
    assert said.ids == greedy(reference, prompt, 12)
    assert (await read(ask(engine, prompt, 3, logit_bias={42: 100}))).ids == [42, 42, 42]


async def test_penalties_drive_out_what_was_said(engine: TransformersEngine) -> None:
    said = await read(
        ask(engine, prompt_of(8, 10), 30, logit_bias={1: 50, 2: 49.9}, frequency_penalty=2)
    )
    assert {1, 2} <= set(said.ids)
    assert abs(said.ids.count(1) - said.ids.count(2)) <= 1


async def test_events_come_in_order_and_the_last_has_timings(engine: TransformersEngine) -> None:
    said = await read(ask(engine, prompt_of(9, 10)))
    assert said.order[:2] == ["Queued", "Started"]
    assert said.order[-1] == "Finished"
    assert set(said.last.timings) == {"queue", "prefill", "decode"}


async def test_a_full_queue_refuses_with_a_time_to_come_back(engine: TransformersEngine) -> None:
    tasks = [asyncio.create_task(read(ask(engine, prompt_of(seed, 10), 200))) for seed in range(10)]
    await asyncio.sleep(0)
    with pytest.raises(Busy) as refused:
        ask(engine, prompt_of(1, 10))
    assert refused.value.retry_after_s >= 1
    await asyncio.gather(*tasks)


async def test_the_place_of_a_cancelled_request_is_free_at_once(engine: TransformersEngine) -> None:
    streams = [ask(engine, prompt_of(seed, 10), 200) for seed in range(10)]
    with pytest.raises(Busy):
        ask(engine, prompt_of(1, 10))
    with engine._wake:  # no step between the end of one and the next
        streams[0].cancel()
        taken = ask(engine, prompt_of(1, 10), 2)
    said = await read(taken)
    assert said.order[-1] == "Finished"
    for stream in streams:
        stream.cancel()


async def test_what_does_not_fit_is_refused_at_once_with_the_numbers(
    engine: TransformersEngine,
) -> None:
    with pytest.raises(InvalidRequest, match="256"):
        ask(engine, prompt_of(1, 256))
    with pytest.raises(InvalidRequest, match="lower max_tokens to 56"):
        ask(engine, prompt_of(1, 200), 100)
    with pytest.raises(InvalidRequest, match="empty"):
        ask(engine, [])


async def test_a_drain_lets_work_end_and_refuses_new(engine: TransformersEngine) -> None:
    running = asyncio.create_task(read(ask(engine, prompt_of(1, 10), 60)))
    await asyncio.sleep(0.02)
    draining = asyncio.create_task(asyncio.to_thread(engine.drain, 10))
    await asyncio.sleep(0.01)
    with pytest.raises(Draining):
        ask(engine, prompt_of(1, 10))
    await draining
    assert isinstance((await running).last, Finished)


async def test_a_cancelled_request_frees_its_slot(engine: TransformersEngine) -> None:
    stream = ask(engine, prompt_of(1, 10), 240)
    async for event in stream:
        if isinstance(event, Started):
            break
    stream.cancel()
    for _ in range(200):
        if engine.running == 0:
            break
        await asyncio.sleep(0.01)
    assert engine.running == 0
    assert len((await read(ask(engine, prompt_of(2, 10)))).ids) == 12


async def test_an_engine_whose_steps_keep_failing_says_that_it_is_dead(
    engine: TransformersEngine,
) -> None:
    def broken() -> None:
        raise RuntimeError("the device is lost")

    engine._batch.step = broken  # type: ignore[method-assign]
    for _ in range(3):
        assert isinstance((await read(ask(engine, prompt_of(1, 10)))).last, Failed)
    assert "the device is lost" in (engine.dead or "")
