"""Conversations about scenes, made up without end: what the model learns from and what it is judged
by.

    python -m atelier.builtin.scenes.dialogue --skill call --count 3

The last message is the assistant's answer that counts. Scenes follow the picture model's split: no
scene of a training dialogue holds a combination that is held out, and the scene of a held-out
dialogue's last answer always does.
"""

import argparse
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

from atelier.builtin.scenes.conversation import Conversation, Split
from atelier.builtin.scenes.wishes import complete, prompt, random_wish


class Skill(Enum):
    """What the last answer of a dialogue takes."""

    WISH = "wish"  # a wish becomes a scene prompt
    EDIT = "edit"  # a change of the scene before becomes a scene prompt
    QUESTION = "question"  # a question about a scene
    CALL = "call"  # a wish or a change, with a picture tool: the call
    RESULT = "result"  # the sentence after the tool has answered
    WORDS = "words"  # a question or small talk although a tool is offered
    JSON = "json"  # a scene as JSON
    CHAT = "chat"  # small talk


WEIGHTS = {
    Skill.WISH: 14, Skill.EDIT: 18, Skill.QUESTION: 30, Skill.CALL: 14, Skill.RESULT: 3,
    Skill.WORDS: 8, Skill.JSON: 9,
    Skill.CHAT: 4,
}  # fmt: skip
HISTORY = {0: 35, 1: 27, 2: 18, 3: 10, 5: 8, 12: 2}  # exchanges before the last, and how often
PLAIN_SHARE = 0.02  # training dialogues that are a bare scene prompt, for plain completion
FORCED_SHARE = 0.10  # training calls and JSON answers whose form is imposed


@dataclass
class Dialogue:
    """Messages in the OpenAI form with the tools on offer. `imposed`: character spans of the last
    answer that an engine would force on the model, hence nothing to learn. `plain`: a bare text, no
    conversation."""

    skill: Skill
    messages: list[dict[str, Any]]
    tools: list[Any] | None = None
    imposed: tuple[tuple[int, int], ...] = ()
    plain: bool = False


def sample(rng: random.Random, split: Split, skill: Skill) -> Dialogue:
    """One dialogue whose last answer takes `skill`."""
    tooled = skill in (Skill.CALL, Skill.RESULT, Skill.WORDS) or (
        skill is Skill.JSON and rng.random() < 0.2
    )
    talked = Conversation(
        rng, split, tooled, in_json=not tooled and skill is not Skill.CHAT and rng.random() < 0.05
    )
    (history,) = rng.choices(list(HISTORY), list(HISTORY.values()))
    for _ in range(history):
        talked.exchange()
    _LAST[skill](talked)
    if split is Split.TRAIN and skill in (Skill.CALL, Skill.JSON) and rng.random() < FORCED_SHARE:
        talked.impose()
    return Dialogue(skill, talked.messages, talked.tools or None, talked.imposed)


def sample_dialogues(
    split: Split, seed: int, count: int, skill: Skill | None = None
) -> Iterator[Dialogue]:
    """`count` dialogues, the same for the same seed; skills by `WEIGHTS` unless one is named."""
    rng = random.Random(seed)
    for _ in range(count):
        if skill is None and split is Split.TRAIN and rng.random() < PLAIN_SHARE:
            text = prompt(complete(random_wish(rng, of_held_out=False)))
            yield Dialogue(Skill.WISH, [{"role": "assistant", "content": text}], plain=True)
            continue
        chosen = skill or rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        yield sample(rng, split, chosen)


def _last_call(talked: Conversation) -> None:
    while not (talked.messages and talked.messages[-1].get("tool_calls")):
        draw = talked.rng.random()
        if talked.just_drawn() and draw < 0.1:
            talked.again()
        elif talked.scene is not None and draw < 0.45:
            talked.edit(last=True)
        else:
            talked.wish()


def _last_result(talked: Conversation) -> None:
    _last_call(talked)
    talked.result()


def _last_words(talked: Conversation) -> None:
    draw = talked.rng.random()
    turn = talked.chat if draw < 0.2 else talked.prompt_wish if draw < 0.35 else talked.question
    turn()


def _last_wish(talked: Conversation) -> None:
    turn = talked.prompt_wish if talked.rng.random() < 0.1 else talked.wish
    turn()


_LAST: dict[Skill, Callable[[Conversation], None]] = {
    Skill.WISH: _last_wish,
    Skill.EDIT: lambda talked: talked.edit(last=True),
    Skill.QUESTION: Conversation.question,
    Skill.CALL: _last_call,
    Skill.RESULT: _last_result,
    Skill.WORDS: _last_words,
    Skill.JSON: Conversation.as_json,
    Skill.CHAT: Conversation.chat,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--split", type=Split, default=Split.TRAIN, help="train or held-out")
    parser.add_argument(
        "--skill", type=Skill, help="one of " + ", ".join(skill.value for skill in Skill)
    )
    parser.add_argument("--count", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for dialogue in sample_dialogues(
        arguments.split, arguments.seed, arguments.count, arguments.skill
    ):
        for tool in dialogue.tools or []:
            print("     tool:", json.dumps(tool))
        for message in dialogue.messages:
            print(
                f"{message['role']:>9}:",
                message["content"],
                json.dumps(message.get("tool_calls", "")),
            )
        print()


if __name__ == "__main__":
    main()
