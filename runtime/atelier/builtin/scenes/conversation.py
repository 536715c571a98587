"""One conversation under way: its turns, each with the one right answer, until the one that
counts."""

import itertools
import json
import random
import zlib
from collections.abc import Callable
from enum import Enum
from typing import Any

from atelier.builtin.scenes import talk, tools
from atelier.builtin.scenes.edits import Editor
from atelier.builtin.scenes.phrases import (
    PROMPT_REQUESTS,
    REQUESTS,
    SAME_SCENE_IN_JSON,
    SCENE_REQUESTS_IN_JSON,
    STATEMENTS,
)
from atelier.builtin.scenes.questions import Asker
from atelier.builtin.scenes.scene_json import (
    ASKS_FOR_KEYS,
    Pieces,
    chosen_values,
    pieces,
    scene_json,
)
from atelier.builtin.scenes.wishes import Speaker, complete, held_out, prompt, random_wish
from atelier.builtin.shapes.scene import Scene

SYSTEM = (
    "You are a helpful assistant.", "You turn wishes into scene prompts.", "Answer briefly.",
    "You are the voice of a picture server.",
    "You help people make pictures of shapes.", "Be kind and brief.", "You are a careful painter.",
    "Use the tools when they help.",
    "You are an assistant that draws pictures.", "Help the user.",
    "You are a helpful AI assistant. Be concise.",
    "Today is Monday.",
)  # fmt: skip
JSON_SYSTEM = (
    "Answer in JSON.", "Always answer with JSON only.", "Reply with a JSON object.",
    "You answer in JSON.",
    "Output JSON.", "You are a helpful assistant that answers in JSON.",
    "Respond with valid JSON only.",
)  # fmt: skip
AGAIN = (
    "again please",
    "once more",
    "another one",
    "try again",
    "the same again",
    "one more please",
    "again",
    "please try again",
)
DRAWN = "Here is your picture: {}."
FAILED = "The picture could not be made. Shall I try again?"
YES = ("yes", "yes please", "Yes, try again", "ok", "please do", "sure")
# tries to get from the scene at hand to one of the right side, before another scene is told
HARD_EDIT = 200


class Split(Enum):
    """The two sides: what is learned from, and what is only ever asked."""

    TRAIN = "train"
    HELD_OUT = "held-out"


class Conversation:
    """One conversation under way; every choice comes from `rng`."""

    def __init__(self, rng: random.Random, split: Split, with_tool: bool, in_json: bool) -> None:
        self.rng, self.split, self.in_json = rng, split, in_json
        self.speaker = Speaker(rng)
        self.scene: Scene | None = None
        self.tool: str | None = None
        self.tools: list[tools.Tool] = []
        self.messages: list[dict[str, Any]] = []
        self.imposed: tuple[tuple[int, int], ...] = ()
        self._offer(with_tool)
        self._open()

    def _offer(self, with_tool: bool) -> None:
        if with_tool:
            offered = tools.image_tool(self.rng)
            self.tool = offered["function"]["name"]
            self.tools = [offered] + [
                tools.other_tool(self.rng) for _ in range(self.rng.choice((0, 0, 0, 1, 2)))
            ]
            self.rng.shuffle(self.tools)
        elif self.rng.random() < 0.03:
            self.tools = [tools.other_tool(self.rng)]

    def _open(self) -> None:
        draw = self.rng.random()
        if self.in_json:
            self.say("system", self.rng.choice(JSON_SYSTEM))
        elif draw < 0.4:
            self.say("system", self.rng.choice(SYSTEM))
        elif draw < 0.45:
            self.say("system", talk.noise(self.rng, self.rng.choice((5, 20, 60, 200))))

    def say(self, role: str, content: str) -> None:
        """Adds a message."""
        self.messages.append({"role": role, "content": content})

    def answer(self, words: str) -> None:
        """The assistant's sentence, wrapped where all answers are JSON."""
        self.say("assistant", json.dumps({"answer": words}) if self.in_json else words)

    def wished(self) -> Scene:
        """A wish on this dialogue's side of the split."""
        return random_wish(self.rng, self.split is Split.HELD_OUT)

    def show(self, words_only: bool = False) -> None:
        """The assistant's answer to a wish: a call where a picture tool is offered, otherwise the
        scene prompt."""
        assert self.scene is not None
        if self.in_json:
            self.say("assistant", scene_json(self.scene))
        elif self.tool and not words_only:
            self.messages.append(tools.call(self.tool, prompt(self.scene)))
        else:
            self.say("assistant", prompt(self.scene))

    def wish(self) -> None:
        """A new wish, and its answer."""
        wish = self.wished()
        self.scene = complete(wish)
        self.say(
            "user", self.speaker.polish(self.rng.choice(REQUESTS).format(self.speaker.scene(wish)))
        )
        self.show()

    def prompt_wish(self) -> None:
        """A wish for the prompt itself, not for its picture, and its answer."""
        wish = self.wished()
        self.scene = complete(wish)
        self.say(
            "user",
            self.speaker.polish(self.rng.choice(PROMPT_REQUESTS).format(self.speaker.scene(wish))),
        )
        self.show(words_only=True)

    def edit(self, last: bool) -> None:
        """A change of the scene, which may be told in the same message; its answer."""
        told = self.scene is None or (not self.tool and self.rng.random() < 0.2)
        strict = last and self.split is Split.HELD_OUT
        for attempt in itertools.count():
            told = told or attempt > HARD_EDIT
            start = self.scene
            if told or start is None:
                start = complete(random_wish(self.rng, strict and self.rng.random() < 0.5))
            text, changed = Editor(self.rng, start).edit()
            if (
                held_out(changed)
                if strict
                else self.split is Split.HELD_OUT or not held_out(changed)
            ):
                break
        self.scene = changed
        self.say("user", self.statement(start, text) if told and start else text)
        self.show()

    def just_drawn(self) -> bool:
        """Whether the turn before was a tool's answer told to the user."""
        return len(self.messages) > 1 and self.messages[-2]["role"] == "tool" and self.on_side()

    def on_side(self) -> bool:
        """Whether there is a scene, and on this dialogue's side of the split."""
        return self.scene is not None and held_out(self.scene) == (self.split is Split.HELD_OUT)

    def again(self) -> None:
        """The same once more."""
        words = YES if self.messages[-1]["content"] == FAILED and self.rng.random() < 0.5 else AGAIN
        self.say("user", self.speaker.polish(self.rng.choice(words)))
        self.show()

    def statement(self, scene: Scene, question: str) -> str:
        """A message that tells a scene and asks something about it."""
        text = self.rng.choice(STATEMENTS).format(
            scene=self.speaker.scene(scene), question=question
        )
        return self.speaker.polish(text)

    def question(self) -> None:
        """A question about the scene before, or about one told with it; its answer."""
        told = not self.on_side() or self.rng.random() < 0.3
        if told:
            self.scene = complete(self.wished())
        assert self.scene is not None
        question, answer = Asker(self.rng, self.scene).ask()
        if self.rng.random() < 0.1:
            question = question[0].lower() + question[1:].rstrip("?.")
        self.say("user", self.statement(self.scene, question) if told else question)
        self.answer(answer)

    def result(self) -> None:
        """The tool's answer to the call before, and the assistant's sentence."""
        assert self.scene is not None
        failed = self.rng.random() < 0.2
        self.say("tool", tools.failure(self.rng) if failed else tools.success(self.rng))
        self.answer(FAILED if failed else DRAWN.format(prompt(self.scene)))

    def chat(self) -> None:
        """Small talk; in held-out dialogues of that skill only what training leaves out."""
        while True:
            said, answer = talk.small_talk(self.rng, self.scene is not None)
            said = said.lower() if self.rng.random() < 0.3 else said
            said = self.speaker.polish(said) if self.rng.random() < 0.4 else said
            if (zlib.crc32(said.encode()) % 10 == 0) == (self.split is Split.HELD_OUT):
                break
        self.say("user", said)
        self.answer(answer)

    def as_json(self) -> None:
        """A scene wanted as JSON, whole or by keys, told now or before; its answer."""
        if self.on_side() and self.rng.random() < 0.4:
            assert self.scene is not None
            self.say("user", self.speaker.polish(self.rng.choice(SAME_SCENE_IN_JSON)))
            return self.say("assistant", scene_json(self.scene))
        wish = self.wished()
        self.scene = complete(wish)
        if self.rng.random() < 0.5:
            request = self.rng.choice(SCENE_REQUESTS_IN_JSON).format(self.speaker.scene(wish))
            self.say("user", self.speaker.polish(request))
            return self.say("assistant", scene_json(self.scene))
        values = chosen_values(self.rng, self.scene)
        keys = list(values)
        listed = ", ".join(keys[:-1]) + (" and " if keys[:-1] else "") + keys[-1]
        asked = self.rng.choice(ASKS_FOR_KEYS).format(
            keys=self.rng.choice((listed, ", ".join(keys)))
        )
        self.say("user", self.speaker.polish(self.speaker.scene(wish) + asked))
        self.say("assistant", json.dumps(values))

    def impose(self) -> None:
        """Replaces the last answer by one whose form an engine imposes: a forced call, or JSON by a
        schema."""
        assert self.scene is not None
        if self.tool and self.messages[-1].get("tool_calls"):
            given, rest = self.rng.choice(tools.forced_answers(self.tool, prompt(self.scene)))
            written: Pieces = [(given, False), (rest, True)]
        else:
            written = pieces(chosen_values(self.rng, self.scene))
        place, spans = 0, []
        for text, chosen in written:
            if not chosen:
                spans.append((place, place + len(text)))
            place += len(text)
        self.imposed = tuple(spans)
        self.messages[-1] = {"role": "assistant", "content": "".join(text for text, _ in written)}

    def exchange(self) -> None:
        """One exchange of history, complete with the tool's answer."""
        turns: list[tuple[int, Callable[[], None]]] = [
            (4, self.wish), (1, self.prompt_wish), (7, self.question), (1, self.chat),
        ]  # fmt: skip
        if self.scene is not None:
            turns.append((5, lambda: self.edit(last=False)))
        if self.scene is not None and not self.tool:
            turns.append((1, self.as_json))
        (turn,) = self.rng.choices([turn for _, turn in turns], [weight for weight, _ in turns])
        turn()
        if self.messages[-1].get("tool_calls"):
            self.result()
