"""The built-in language model: its checkpoint, its dialogues, and one right answer of each
skill."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from atelier.builtin.scenes.corpus import LEARNED, encode, make
from atelier.builtin.scenes.dialogue import Dialogue, Skill, Split, sample_dialogues
from atelier.builtin.scenes.evaluate import answers, score
from atelier.builtin.scenes.phrases import (
    COLOUR_LIKENESSES,
    COLOUR_PHRASES,
    RELATION_PHRASES,
    SHAPE_LOOKS,
    SHAPE_PHRASES,
)
from atelier.builtin.scenes.tools import IMAGE_TOOL
from atelier.builtin.scenes.wishes import complete, held_out, prompt
from atelier.builtin.shapes.prompts import parse
from atelier.builtin.shapes.scene import COLOURS, RELATIONS, SHAPES, Relation, Scene, Thing

FOLDER = Path(__file__).parents[2] / "runtime" / "atelier" / "builtin" / "scenes"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(FOLDER).eval()


def ask(
    model: Any, tokenizer: Any, *messages: dict[str, Any], tools: list[Any] | None = None
) -> str:
    """The model's greedy answer."""
    text = tokenizer.apply_chat_template(
        list(messages), tools=tools, tokenize=False, add_generation_prompt=True
    )
    return answers(model, tokenizer, [text])[0]


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def spoken_scenes(dialogue: Dialogue) -> list[Scene]:
    """Every scene that the assistant gives as a prompt, bare or in a call."""
    texts = [message["content"] for message in dialogue.messages if message["role"] == "assistant"]
    calls = [call for message in dialogue.messages for call in message.get("tool_calls", ())]
    texts += [call["function"]["arguments"]["prompt"] for call in calls]
    return [parse(text) for text in texts if text.startswith(("a ", "an "))]


def test_the_checkpoint_is_small_and_loads_without_remote_code(model: Any) -> None:
    assert type(model).__name__ == "Qwen3ForCausalLM"
    assert model.dtype == torch.bfloat16
    assert sum(path.stat().st_size for path in FOLDER.glob("*.safetensors")) <= 12_000_000


@pytest.mark.parametrize(
    "text",
    [
        "héllo wörld",
        "日本語 ☃ 🎨",
        "\x00\x07\ttab\r\n  two  spaces ",
        "<b>&amp;</b>",
        "a" * 300,
        "İ̇ ﷽ \u202e",
    ],
)
def test_any_text_survives_the_tokenizer(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_tool_marks_stay_when_special_tokens_are_stripped(tokenizer: Any) -> None:
    ids = tokenizer("<tool_call>\n{}\n</tool_call><|im_end|>").input_ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "<tool_call>\n{}\n</tool_call>"


def test_the_template_reads_text_parts_and_refuses_pictures(tokenizer: Any) -> None:
    part = {"type": "text", "text": "Hello"}
    plain = tokenizer.apply_chat_template([user("Hello")], tokenize=False)
    assert (
        tokenizer.apply_chat_template([{"role": "user", "content": [part]}], tokenize=False)
        == plain
    )
    with pytest.raises(Exception, match="image_url"):
        tokenizer.apply_chat_template(
            [{"role": "user", "content": [{"type": "image_url"}]}], tokenize=False
        )
    with pytest.raises(Exception, match="narrator"):
        tokenizer.apply_chat_template([{"role": "narrator", "content": "Hello"}], tokenize=False)


def test_call_arguments_render_alike_as_object_and_as_text(tokenizer: Any) -> None:
    def rendering(arguments: Any) -> str:
        calls = [
            {"type": "function", "function": {"name": "generate_image", "arguments": arguments}}
        ]
        message = {"role": "assistant", "content": None, "tool_calls": calls}
        return str(tokenizer.apply_chat_template([user("a star"), message], tokenize=False))

    assert rendering({"prompt": "a red star"}) == rendering('{"prompt": "a red star"}')


def test_dialogues_repeat_for_a_seed_and_differ_between_seeds() -> None:
    def told(seed: int) -> list[Any]:
        return [dialogue.messages for dialogue in sample_dialogues(Split.TRAIN, seed, 50)]

    assert told(1) == told(1)
    assert told(1) != told(2)


def test_no_training_dialogue_shows_a_held_out_scene() -> None:
    scenes = [scene for d in sample_dialogues(Split.TRAIN, 3, 1500) for scene in spoken_scenes(d)]
    assert len(scenes) > 1000
    assert not [scene for scene in scenes if held_out(scene)]


@pytest.mark.parametrize("skill", [Skill.WISH, Skill.EDIT, Skill.CALL])
def test_every_held_out_answer_is_a_held_out_scene(skill: Skill) -> None:
    for dialogue in sample_dialogues(Split.HELD_OUT, 4, 100, skill):
        last = Dialogue(skill, dialogue.messages[-1:])
        if "objects" not in str(last.messages):
            assert held_out(spoken_scenes(last)[0])


def test_every_word_of_the_grammar_has_its_phrases_and_no_phrase_two_words() -> None:
    for words, tables in (
        (COLOURS, (COLOUR_PHRASES, COLOUR_LIKENESSES)),
        (SHAPES, (SHAPE_PHRASES, SHAPE_LOOKS)),
    ):
        for table in tables:
            assert set(table) == set(words)
            phrases = [phrase for word in words for phrase in table[word]]
            assert len(phrases) == len(set(phrases))
    assert set(RELATION_PHRASES) == set(RELATIONS)


def test_what_a_wish_leaves_open_is_filled_in_always_alike() -> None:
    wish = Scene((Thing(None, "star"), Thing("red", None)), (Relation(0, "above", 1),), "blue")
    assert prompt(complete(wish)) == "a green star above a red circle on a blue background"


def test_only_answers_are_learned_and_nothing_that_an_engine_imposes(tokenizer: Any) -> None:
    messages = [user("a red star as JSON"), assistant('{"shape": "star"}')]
    ids = encode(Dialogue(Skill.JSON, messages, imposed=((0, 11),)), tokenizer)
    learned = tokenizer.decode([int(token) - LEARNED for token in ids if token >= LEARNED])
    assert learned.endswith('star"}<|im_end|>')
    assert "shape" not in learned


def test_a_corpus_is_cut_into_batches_that_hold_every_dialogue_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("atelier.builtin.scenes.corpus.SHARD", 100)
    corpus = make(250, workers=2)
    assert len(corpus.lengths) == 300
    assert np.array_equal(corpus.ids, make(250, workers=1).ids)
    batches = list(corpus.batches(8192, 0, np.random.default_rng(0)))
    assert sum(len(batch.tokens) for batch in batches) == len(corpus.lengths)
    firsts = corpus.ids[
        np.cumsum(corpus.lengths) - corpus.lengths
    ]  # nothing stands before them to predict them from
    predicted = np.count_nonzero(corpus.ids >= LEARNED) - np.count_nonzero(firsts >= LEARNED)
    assert sum(len(batch.answers) for batch in batches) == predicted
    assert max(batch.tokens.numel() for batch in batches) <= 8192


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        ("something round and red over something blue", "a red circle above a blue circle"),
        (
            "I'd like a big green square left of a star please",
            "a large green square left of a red star",
        ),
        (
            "Scene: a red circle above a blue square. Which colour is the circle?",
            "The circle is red.",
        ),
        (
            "Scene: a red circle above a blue square. How many shapes are there?",
            "There are two shapes.",
        ),
        ("There is a red circle above a blue square. Is there a star?", "No, there is no star."),
        ("We have a yellow star. Make it bigger.", "a large yellow star"),
    ],
)
def test_it_answers(model: Any, tokenizer: Any, said: str, answer: str) -> None:
    assert ask(model, tokenizer, user(said)) == answer


@pytest.mark.parametrize("colour", [colour for colour in COLOURS if colour != "red"])
def test_it_changes_the_scene_before(model: Any, tokenizer: Any, colour: str) -> None:
    turns = [user("something round and red"), assistant("a red circle")]
    assert ask(model, tokenizer, *turns, user(f"Make it {colour}.")) in (
        f"a {colour} circle",
        f"an {colour} circle",
    )


def test_it_remembers_the_scene(model: Any, tokenizer: Any) -> None:
    turns = [user("a red circle over a blue box"), assistant("a red circle above a blue square")]
    assert (
        ask(model, tokenizer, *turns, user("What is below the circle?"))
        == "A blue square is below the circle."
    )


def test_it_calls_the_picture_tool_and_tells_the_result(model: Any, tokenizer: Any) -> None:
    wish = user("Please draw a red circle above a blue square.")
    said = ask(model, tokenizer, wish, tools=[IMAGE_TOOL])
    assert said.startswith("<tool_call>\n")
    assert said.endswith("\n</tool_call>")
    call = json.loads(said.removeprefix("<tool_call>").removesuffix("</tool_call>"))
    assert call == {
        "name": "generate_image",
        "arguments": {"prompt": "a red circle above a blue square"},
    }
    turns = [
        wish,
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"type": "function", "function": call}],
        },
        {"role": "tool", "content": '{"url": "http://127.0.0.1:8080/images/7f.png"}'},
    ]
    told = "Here is your picture: a red circle above a blue square."
    assert ask(model, tokenizer, *turns, tools=[IMAGE_TOOL]) == told


def test_it_answers_a_question_in_words_though_a_tool_is_offered(
    model: Any, tokenizer: Any
) -> None:
    question = user("There is a red circle above a blue square. Which colour is the square?")
    assert ask(model, tokenizer, question, tools=[IMAGE_TOOL]) == "The square is blue."


def test_it_writes_json_when_asked(model: Any, tokenizer: Any) -> None:
    said = ask(model, tokenizer, user("a large red circle as JSON"))
    assert json.loads(said) == {"objects": [{"shape": "circle", "color": "red", "size": "large"}]}
    by_system = ask(
        model, tokenizer, {"role": "system", "content": "Answer in JSON."}, user("a green star")
    )
    assert json.loads(by_system) == {"objects": [{"shape": "star", "color": "green"}]}


def test_it_greets_and_says_what_it_is_for(model: Any, tokenizer: Any) -> None:
    assert ask(model, tokenizer, user("Hello!")).startswith("Hello! Tell me which shapes")


def test_held_out_dialogues_are_mostly_answered_exactly(model: Any, tokenizer: Any) -> None:
    dialogues = [
        dialogue for skill in Skill for dialogue in sample_dialogues(Split.HELD_OUT, 5, 12, skill)
    ]
    assert score(model, tokenizer, dialogues, rows=24).share >= 0.88


def test_a_prompt_as_long_as_the_context_runs(model: Any, tokenizer: Any) -> None:
    ids = torch.full((1, tokenizer.model_max_length - 4), tokenizer(" red").input_ids[0])
    grown = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, min_new_tokens=4
    )
    assert grown.shape[1] == tokenizer.model_max_length
