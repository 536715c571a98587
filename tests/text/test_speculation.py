"""Guesses change no answer: with them the embedded engine says token by token what it says without,
whatever the request asks for and whoever else is in the batch."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from atelier.errors import CheckpointError, StartError
from atelier.events import Failed, Finished, Started, Token
from atelier.settings import Settings
from atelier.text.embedded.admission import ContextLimits, Vocabulary
from atelier.text.embedded.capacity import Capacity
from atelier.text.embedded.draft_model import check_tokenizer
from atelier.text.embedded.engine import TransformersEngine
from atelier.text.embedded.loading import load, make_runner
from atelier.text.embedded.probe import check_steps, reference_logits
from atelier.text.embedded.prompt_lookup import PromptLookup, SearchedText
from atelier.text.embedded.speculation import Acceptance, Speculation
from atelier.text.refused_settings import check_embedded
from atelier.text.request import make_request
from tests.text import families, guessing
from tests.text.guessing import TOKENS, Always, Oracle
from tests.text.running import Server

torch.set_num_threads(1)

PROMPTS = [families.prompt_of(length, length) for length in families.LENGTHS[::2]]


def answers_of(family: str, speculation: Speculation | None, count: int = 20) -> Any:
    """Greedy answers to PROMPTS, four at a time, of the family's model."""
    engine = families.engine_of(guessing.runner_of(families.make(family, "cpu")), speculation)
    try:
        return families.ask_all(engine, PROMPTS, count)
    finally:
        engine.close()


def check_equal(plain: Any, guessed: Any) -> None:
    assert [one.ids for one in guessed] == [one.ids for one in plain]
    for one, other in zip(plain, guessed, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-3)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_greedy_answers_are_equal_token_by_token(family: str) -> None:
    plain = answers_of(family, None)
    oracle = Oracle(PROMPTS, [one.ids for one in plain])
    guessed = answers_of(family, Always(oracle, TOKENS))
    check_equal(plain, guessed)
    drafted, accepted = (sum(getattr(one, k) for one in guessed) for k in ("drafted", "accepted"))
    assert 0.4 * drafted < accepted < 0.9 * drafted


@pytest.mark.parametrize("family", ["gemma3", "qwen3", "gpt2"])
def test_a_draft_model_guesses_and_changes_nothing(family: str) -> None:
    plain = answers_of(family, None)
    guessed = answers_of(family, Always(guessing.draft_model(family, "cpu"), TOKENS))
    check_equal(plain, guessed)
    assert sum(one.accepted for one in guessed) > 0.3 * sum(one.drafted for one in guessed) > 0


@pytest.mark.parametrize("family", ["gemma3", "mistral", "llama"])
def test_a_known_beginning_is_reused_after_guesses_that_failed(family: str) -> None:
    model, reference = (families.make(family, "cpu") for _ in range(2))
    first = families.prompt_of(1, 200)
    speculation = Always(guessing.draft_model(family, "cpu"), TOKENS)
    engine = families.engine_of(guessing.runner_of(model, slots=2, slack=40), speculation)
    near = first[:190] + families.prompt_of(2, 40)
    far = first[:100] + families.prompt_of(3, 60)
    try:
        said = [families.ask_all(engine, [prompt], 9)[0] for prompt in (first, near, far)]
    finally:
        engine.close()
    assert said[1].cached == 190
    assert said[2].cached == (100 if family == "llama" else 0)
    assert sum(one.drafted for one in said) > sum(one.accepted for one in said)
    families.check(reference, [first, near, far], said, 1e-3)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_the_check_at_the_start_looks_at_steps_with_guesses(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = families.make(family, "cpu")
    reference = reference_logits(model)
    runner = guessing.runner_of(model)
    check_steps(runner, reference)
    place = type(runner).place

    def late(self: Any, tokens: Any, positions: dict[int, int]) -> None:
        place(self, tokens, {slot: position + 1 for slot, position in positions.items()})

    monkeypatch.setattr(type(runner), "place", late)
    with pytest.raises(CheckpointError, match="standard deviations"):
        check_steps(runner, reference)


# What requests may ask for, on a model with a tokenizer of bytes

SCHEMA = {
    "type": "object",
    "properties": {"a": {"enum": ["red", "green"]}, "b": {"type": "integer"}},
    "required": ["a", "b"],
    "additionalProperties": False,
}
FORM = {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}}
BY_TURNS = {"temperature": 0, "frequency_penalty": 2, "logit_bias": {65: 100.0, 66: 100.0}}
"""Says b and c, each mostly twice."""

WISHES: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0, "logprobs": 3},
    "stop": BY_TURNS | {"stop": ["bbcc", "xyz"]},
    "stop ids": {"temperature": 0, "stop_token_ids": (40, 41, 42, 43, 44)},
    "sampled": {"temperature": 1.0, "seed": 5, "top_p": 0.9, "logprobs": 2},
    "choices": {"temperature": 0.8, "seed": 6, "top_k": 40, "n": 3},
    "penalties": {"temperature": 0, "frequency_penalty": 1.5, "repetition_penalty": 1.3},
    "bias": {"temperature": 0, "logit_bias": {65: 60.0, 66: 60.5}, "presence_penalty": 2},
    "schema": {"temperature": 0, "response_format": FORM, "logprobs": 1},
    "sampled schema": {"temperature": 1.0, "seed": 7, "response_format": FORM},
    "end": {"temperature": 0, "max_tokens": 3},
}


@pytest.fixture(scope="module")
def tiny(checkpoint: Path) -> Any:
    def make(speculation: Speculation | None) -> TransformersEngine:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
        runner = make_runner(model, Capacity(6, 256, 0), drafts=TOKENS)
        vocabulary = Vocabulary(tokenizer, model.config.vocab_size, frozenset({257}))
        limits = ContextLimits(context=256, queue=40, timeout=60, prefill_tokens=64)
        return TransformersEngine(runner, vocabulary, limits, speculation)

    return make


async def events_of(engine: TransformersEngine, prompt: list[int], wish: dict[str, Any]) -> Any:
    request = make_request(**({"prompt_ids": prompt, "max_tokens": 40} | wish))
    return [event async for event in engine.submit(request, prompt)]


def ask_for(engine: TransformersEngine) -> dict[str, Any]:
    """All wishes at once, each with a prompt of its own."""

    async def gathered() -> list[Any]:
        wishes = enumerate(WISHES.values())
        return await asyncio.gather(
            *(events_of(engine, prompt_for(seed), wish) for seed, wish in wishes)
        )

    try:
        return dict(zip(WISHES, asyncio.run(gathered()), strict=True))
    finally:
        engine.close()


def prompt_for(seed: int) -> list[int]:
    drawn = torch.randint(0, 250, (9 + 4 * seed,), generator=torch.Generator().manual_seed(seed))
    return [int(token) for token in drawn]


def told(events: list[Any]) -> Any:
    """What a client learns, choice by choice, and how often guesses came true."""
    assert isinstance(events[-1], Finished), events[-1]
    tokens = [event for event in events if isinstance(event, Token)]
    by_choice = {
        choice: (
            [token for event in tokens if event.choice == choice for token in event.ids],
            "".join(event.text for event in tokens if event.choice == choice),
        )
        for choice in {event.choice for event in tokens}
    }
    return by_choice, events[-1].reasons, events[-1].stopped, events[-1].usage.generated


def logprobs(events: list[Any]) -> list[float]:
    tokens = [event for event in events if isinstance(event, Token)]
    return [one.logprob for event in tokens for one in event.likelihoods]


def test_whatever_is_asked_for_is_answered_as_without_guesses(tiny: Any) -> None:
    plain = ask_for(tiny(None))
    answers = [told(plain[name])[0][0][0] for name in WISHES]
    oracle = Oracle(map(prompt_for, range(len(WISHES))), answers)
    guessed = ask_for(tiny(Always(oracle, TOKENS)))
    for name in WISHES:
        assert told(guessed[name]) == told(plain[name]), name
        assert logprobs(guessed[name]) == pytest.approx(logprobs(plain[name]), abs=1e-3), name
        usage = guessed[name][-1].usage
        assert usage.accepted > 0 or name in ("bias", "end"), name
    assert guessed["stop"][-1].reasons == ("stop",)


def test_a_text_that_repeats_itself_is_looked_up(tiny: Any) -> None:
    wish = {"temperature": 0, "logit_bias": {65: 100.0}, "max_tokens": 30}
    plain, engine = tiny(None), tiny(Always(PromptLookup(), TOKENS))
    prompt = prompt_for(3)
    try:
        said = [told(asyncio.run(events_of(one, prompt, wish))) for one in (plain, engine)]
        events = asyncio.run(events_of(engine, prompt, wish))
    finally:
        plain.close()
        engine.close()
    assert said[0] == said[1]
    assert events[-1].usage.accepted > 15


async def test_a_request_that_is_cancelled_among_guesses_leaves_no_trace(tiny: Any) -> None:
    prompt, wish = prompt_for(4), {"temperature": 0, "max_tokens": 30}
    engine = tiny(None)
    plain = told(await events_of(engine, prompt, wish))
    engine.close()
    oracle = Oracle([prompt, prompt_for(5)], [plain[0][0][0], list(range(200))])
    engine = tiny(Always(oracle, TOKENS))
    try:
        for _ in range(3):
            request = make_request(prompt_ids=prompt_for(5), temperature=0, max_tokens=200)
            stream = engine.submit(request, prompt_for(5))
            beside = asyncio.create_task(events_of(engine, prompt, wish))
            async for event in stream:
                if isinstance(event, Started | Token):
                    break
            stream.cancel()
            assert told(await beside) == plain
    finally:
        engine.close()


async def test_a_step_that_fails_is_forgotten_by_the_draft_model() -> None:
    drafter = guessing.draft_model("llama", "cpu")
    runner = guessing.runner_of(families.make("llama", "cpu"))
    engine = families.engine_of(runner, Always(drafter, TOKENS))
    verify, faults = runner.verify, [RuntimeError("a step that fails")]

    def once(*arguments: Any) -> Any:
        if faults:
            raise faults.pop()
        return verify(*arguments)

    runner.verify = once
    prompt = families.prompt_of(1, 40)
    try:
        request = make_request(prompt_ids=prompt, temperature=0, max_tokens=12)
        events = [event async for event in engine.submit(request, prompt)]
        assert isinstance(events[-1], Failed)
        answer = await families.ask(engine, prompt, 12)
    finally:
        engine.close()
    families.check(families.make("llama", "cpu"), [prompt], [answer], 1e-3)
    assert answer.accepted > 0


# What is guessed, and when


def test_the_longest_end_that_stood_before_tells_how_the_text_goes_on() -> None:
    text = SearchedText(40)
    text.add([1, 2, 3, 4, 5, 9, 3, 4, 6, 7])
    assert not text.repeats
    text.add([3, 4])
    assert text.continuation(3) == [6, 7, 3]  # the later of two places
    text.add([5])
    assert text.continuation(2) == [9, 3]  # the longer of two ends
    text.add([8, 8, 8])
    assert text.continuation(4) == [8, 8, 8, 8]  # what repeats itself is repeated further


def test_guesses_are_left_out_where_they_make_answers_slower() -> None:
    class Eager(PromptLookup):
        def offer(self, rows: Any, most: dict[int, int]) -> dict[int, int]:
            return most

        def propose(self, rows: Any, offers: dict[int, int]) -> dict[int, list[int]]:
            return {slot: [7] * count for slot, count in offers.items()}

    def steps(verified_s: float, come_true: int) -> int:
        """How many of 60 steps guessed, when one with guesses takes so long and a plain one 1 s."""
        speculation, guessed = Speculation(Eager(), TOKENS), 0
        sequence: Any = SimpleNamespace(
            over=False, tokens=[], acceptance=Acceptance(), job=SimpleNamespace(max_tokens=1000)
        )
        for _ in range(60):
            drafts = speculation.drafts({0: sequence})
            speculation._begun -= verified_s if drafts else 1.0
            speculation.note(1, 1 + TOKENS if drafts else 1)
            guessed += bool(drafts)
            if drafts:
                sequence.acceptance.note(TOKENS, come_true)
        return guessed

    assert steps(1.5, TOKENS) == 59  # all but the first, which measures a plain step
    assert steps(6.0, TOKENS) == 1  # five tokens in the time of six
    assert steps(1.5, 0) <= 10


def test_a_draft_model_of_another_tokenizer_is_refused_by_name(checkpoint: Path) -> None:
    settings = Settings(model_id=str(checkpoint), draft_model_id="builtin/scenes")
    with pytest.raises(CheckpointError, match=r"DRAFT_MODEL_ID=builtin/scenes has another tok"):
        load(checkpoint, settings, torch.device("cpu"), torch.float32)
    own = AutoTokenizer.from_pretrained(checkpoint)
    check_tokenizer(own, AutoTokenizer.from_pretrained(checkpoint), "same")


def test_two_ways_to_guess_are_refused() -> None:
    settings = Settings(prompt_lookup=True, draft_model_id="builtin/scenes")
    with pytest.raises(StartError, match="PROMPT_LOOKUP=true and DRAFT_MODEL_ID=builtin/scenes"):
        check_embedded(settings)


def test_a_server_counts_guesses_and_says_how_it_guesses(server: Server) -> None:
    body = {"model": "tiny", "prompt": "abc", "max_tokens": 100, "logit_bias": {"65": 100}}
    httpx.post(f"{server.url}/v1/completions", json=body).raise_for_status()
    told = httpx.get(f"{server.url}/v2/models/tiny").json()["properties"]
    assert told["speculation"] == "prompt lookup, 4 tokens"
    drafted = server.metric("atelier_text_drafted_tokens_total")
    assert drafted >= server.metric("atelier_text_accepted_draft_tokens_total") > 0
    alias = f'vllm:spec_decode_num_draft_tokens_total{{model_name="tiny"}} {drafted}'
    assert alias in httpx.get(f"{server.url}/metrics").text
