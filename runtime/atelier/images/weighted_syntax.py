"""Weights in prompts: `(word:1.3)` and `(a, b)0.8`, which may stand in each other and multiply.

Everything else is text: parentheses without a weight too, and those behind a backslash. One pass
reads a prompt, whatever it holds.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from atelier.errors import InvalidRequest

MOST_WEIGHT = 5.0
MOST_PARTS = 64
"""With a weight other than 1: each below 1 is a call of the text encoder."""

MOST_DEPTH = 32

PIECES = re.compile(r"\\[()\\]|[()]|[^()\\]+|\\")
BEHIND = re.compile(r"\d{1,4}(\.\d{1,6})?(?![\w.]*\w)")
INSIDE = re.compile(r":\s*(\d{1,4}(?:\.\d{1,6})?)\s*$")


@dataclass(frozen=True)
class Part:
    """A piece of a prompt and its weight."""

    text: str
    weight: float = 1.0


def read_weights(prompt: str, field: str) -> tuple[Part, ...]:
    """The parts of a prompt, neighbours of one weight joined.

    Args:
        field: for messages.

    Raises:
        InvalidRequest: a weight is too large, there are too many, or they are nested too deep.
    """
    pieces = PIECES.findall(prompt)
    open_groups: list[list[Part]] = [[]]
    begins: list[int] = []  # at which character each of them was opened, counted from 1
    character = 1
    for place, piece in enumerate(pieces):
        character += len(piece)
        if piece == "(":
            open_groups.append([])
            begins.append(character - 1)
            if len(open_groups) > MOST_DEPTH:
                raise InvalidRequest(
                    f"{field}: at character {begins[-1]} parentheses are nested more than"
                    f" {MOST_DEPTH} deep; put a backslash before those that are text",
                    field,
                )
        elif piece == ")" and len(open_groups) > 1:
            group, where = open_groups.pop(), f"{field}: at character {begins.pop()}"
            behind = pieces[place + 1] if place + 1 < len(pieces) else ""
            if found := BEHIND.match(behind):
                pieces[place + 1] = behind[found.end() :]
                character += found.end()
                open_groups[-1] += _weighted(group, float(found[0]), field, where)
            elif group and (found := INSIDE.search(group[-1].text)):
                group[-1] = Part(group[-1].text[: found.start()], group[-1].weight)
                open_groups[-1] += _weighted(group, float(found[1]), field, where)
            else:
                open_groups[-1] += [Part("("), *group, Part(")")]
        else:
            text = piece[1:] if len(piece) == 2 and piece[0] == "\\" else piece
            open_groups[-1].append(Part(text))
    parts = open_groups[0]
    for group in open_groups[1:]:  # never closed
        parts += [Part("("), *group]
    joined = _joined(parts)
    if sum(part.weight != 1 for part in joined) > MOST_PARTS:
        raise InvalidRequest(f"{field}: more than {MOST_PARTS} parts with a weight", field)
    return joined


def _weighted(group: list[Part], weight: float, field: str, where: str) -> list[Part]:
    made = [Part(part.text, part.weight * weight) for part in group]
    if any(part.weight > MOST_WEIGHT for part in made):
        raise InvalidRequest(
            f"{where}: a weight of {max(part.weight for part in made):g}; at most"
            f" {MOST_WEIGHT:g}, those of nested parentheses multiplied",
            field,
        )
    return made


def _joined(parts: list[Part]) -> tuple[Part, ...]:
    joined: list[Part] = []
    texts: list[str] = []
    weight = 1.0
    for part in parts:
        if texts and part.weight != weight:
            joined.append(Part("".join(texts), weight))
            texts = []
        weight = part.weight
        texts.append(part.text)
    if texts:
        joined.append(Part("".join(texts), weight))
    return tuple(part for part in joined if part.text)


def plain_text(parts: tuple[Part, ...]) -> str:
    """The prompt without its weights."""
    return "".join(part.text for part in parts)
