"""Scenes in words, and words back into scenes.

`describe` varies word order, synonyms and how much is said; `parse` reads every sentence that
`describe` writes.
"""

from __future__ import annotations

import random
import re
from dataclasses import replace

from atelier.builtin.shapes.scene import (
    COLOURS,
    OPPOSITE,
    RELATIONS,
    SHAPES,
    SIZES,
    Relation,
    Scene,
    Thing,
)

COLOUR_WORDS: dict[str, tuple[str, ...]] = {
    "red": ("crimson", "scarlet"),
    "orange": ("tangerine",),
    "yellow": ("golden",),
    "green": ("emerald",),
    "cyan": ("turquoise", "aqua"),
    "blue": ("azure",),
    "purple": ("violet",),
    "pink": ("rose",),
    "black": (),
    "white": (),
}
SHAPE_WORDS: dict[str, tuple[str, ...]] = {
    "circle": ("disc", "disk", "ball"),
    "square": ("box",),
    "triangle": ("pyramid",),
    "diamond": ("rhombus", "lozenge"),
    "star": (),
    "heart": (),
    "cross": ("plus",),
}
SIZE_WORDS: dict[str, tuple[str, ...]] = {"small": ("little", "tiny"), "large": ("big", "huge")}
RELATION_WORDS: dict[str, tuple[str, ...]] = {
    "above": ("over", "on top of"),
    "below": ("under", "beneath", "underneath"),
    "left of": ("to the left of",),
    "right of": ("to the right of",),
}
OPEN_SHAPES = ("shape", "object", "thing")
OPENINGS = ("a picture of", "an image of", "a drawing of", "a photo of", "there is")
_SYNONYM_SHARE = 0.25

_COLOUR_OF = {word: name for name in COLOURS for word in (name, *COLOUR_WORDS[name])}
_SHAPE_OF = {word: name for name in SHAPES for word in (name, *SHAPE_WORDS[name])}
_SIZE_OF = {word: name for name in SIZES for word in (name, *SIZE_WORDS[name])}
_RELATION_OF = {words: name for name in RELATIONS for words in (name, *RELATION_WORDS[name])}
_COLOUR = f"(?:{'|'.join(_COLOUR_OF)})"
_RELATION = "|".join(sorted(_RELATION_OF, key=len, reverse=True))
_BACKGROUND = re.compile(
    rf"^(?:on (?:a |the )?)?(?:an )?(?P<before>{_COLOUR}) background[,:]? ?"
    rf"|,? ?(?:on|against|with) (?:a |an |the )?(?P<after>{_COLOUR}) background$"
    rf"|,? on (?P<short>{_COLOUR})$"
)
WORDS = tuple(
    sorted(
        {
            word
            for phrases in (_COLOUR_OF, _SHAPE_OF, _SIZE_OF, _RELATION_OF, OPEN_SHAPES, OPENINGS)
            for phrase in phrases
            for word in phrase.split()
        }
        | {
            "a",
            "an",
            "the",
            "and",
            "is",
            "it",
            "with",
            "in",
            "on",
            "against",
            "background",
            ",",
            ":",
        }
    )
)


def describe(scene: Scene, rng: random.Random, plain: bool = False) -> str:
    """One sentence for `scene`; `plain` keeps to the first word for everything and to the first
    word order."""
    phrases = [_phrase(thing, rng, plain) for thing in scene.things]
    names = [_word(r.name, RELATION_WORDS, rng, plain) for r in scene.relations]
    order = 0.0 if plain else rng.random()
    if not names:
        text = _enumerate(phrases)
    elif len(names) == 1:
        first, second = phrases
        if order < 0.6:
            text = f"{first} {names[0]} {second}"
        elif order < 0.75:
            text = f"{first} is {names[0]} {second}"
        elif order < 0.9:
            text = f"{names[0]} {second}, {first}"
        else:
            text = f"{second} with {first} {names[0]} it"
    else:
        link = "" if scene.relations[1].subject == 1 else "and "
        text = f"{phrases[0]} {names[0]} {phrases[1]} {link}{names[1]} {phrases[2]}"
    return _on_background(text, scene.background, rng, plain)


def _enumerate(phrases: list[str]) -> str:
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def _phrase(thing: Thing, rng: random.Random, plain: bool) -> str:
    size = _word(thing.size, SIZE_WORDS, rng, plain) if thing.size else ""
    colour = _word(thing.colour, COLOUR_WORDS, rng, plain) if thing.colour else ""
    shape = (
        _word(thing.shape, SHAPE_WORDS, rng, plain)
        if thing.shape
        else OPEN_SHAPES[0 if plain else rng.randrange(3)]
    )
    colour_last = bool(colour) and not plain and rng.random() < 0.07
    words = " ".join(
        (f"{size} {shape} in {colour}" if colour_last else f"{size} {colour} {shape}").split()
    )
    draw = 0.0 if plain else rng.random()
    if draw < 0.85:
        return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"
    return f"the {words}" if draw < 0.9 else words


def _word(name: str, synonyms: dict[str, tuple[str, ...]], rng: random.Random, plain: bool) -> str:
    if plain or not synonyms[name] or rng.random() > _SYNONYM_SHARE:
        return name
    return rng.choice(synonyms[name])


def _on_background(text: str, background: str | None, rng: random.Random, plain: bool) -> str:
    opening = f"{rng.choice(OPENINGS)} " if not plain and rng.random() < 0.08 else ""
    if background is None:
        return opening + text
    colour = _word(background, COLOUR_WORDS, rng, plain)
    article = "an" if colour[0] in "aeiou" else "a"
    draw = 0.0 if plain else rng.random()
    if draw < 0.6:
        return f"{opening}{text} on {article} {colour} background"
    if draw < 0.75:
        return f"{opening}{text} {rng.choice(('against', 'with'))} {article} {colour} background"
    if draw < 0.83:
        return f"{opening}{text} on {colour}"
    if draw < 0.93:
        return f"on {article} {colour} background, {text}"
    return f"{colour} background: {text}"


def vary(scene: Scene, rng: random.Random) -> Scene:
    """`scene` with some of it left unsaid, as people do; the relations go all together or not at
    all."""
    share = 0.2 if len(scene.things) == 1 else 0.08
    things = []
    for thing in scene.things:
        draw = rng.random()
        if draw < share:
            thing = replace(thing, colour=None)
        elif draw < 2 * share:
            thing = replace(thing, shape=None)
        things.append(thing)
    relations = scene.relations if rng.random() < 0.88 else ()
    return Scene(tuple(things), relations, scene.background if rng.random() < 0.7 else None)


def fragment(scene: Scene, rng: random.Random) -> str:
    """One word or two that hold for `scene`, as in a negative prompt: "red", "star", "small", "blue
    background"."""
    thing = rng.choice(scene.things)
    choices = [thing.colour, thing.shape, f"{scene.background} background"]
    if thing.size:
        choices.append(thing.size)
    return str(rng.choice(choices))


def parse(prompt: str) -> Scene:
    """The scene that `prompt` describes; what it leaves open is None.

    Raises ValueError that quotes the part that is not understood.
    """
    text = (
        " ".join(prompt.lower().replace(",", " , ").replace(" :", ":").split())
        .replace(" ,", ",")
        .rstrip(".")
    )
    for opening in OPENINGS:
        text = text.removeprefix(f"{opening} ")
    background = None
    if (found := _BACKGROUND.search(text)) is not None:
        background = _COLOUR_OF[found["before"] or found["after"] or found["short"]]
        text = (text[: found.start()] + text[found.end() :]).strip()
    if (inverted := re.fullmatch(rf"({_RELATION}) (.+), (.+)", text)) is not None:
        text = f"{inverted[3]} {inverted[1]} {inverted[2]}"
    elif (trailing := re.fullmatch(rf"(.+) with (.+) ({_RELATION}) it", text)) is not None:
        text = f"{trailing[2]} {trailing[3]} {trailing[1]}"
    parts = re.split(rf" (?:is )?(and )?\b({_RELATION}) ", text)
    if len(parts) == 1:
        return Scene(
            tuple(_thing(phrase, prompt) for phrase in re.split(r", | and ", text)), (), background
        )
    things = tuple(_thing(phrase, prompt) for phrase in parts[0::3])
    relations = [Relation(0, _RELATION_OF[parts[2]], 1)]
    if len(things) > 2:
        relations.append(Relation(0 if parts[4] else 1, _RELATION_OF[parts[5]], 2))
    return Scene(things, tuple(relations), background)


def _thing(phrase: str, prompt: str) -> Thing:
    found: dict[str, str] = {}
    named = False
    for word in phrase.split():
        for field, names in (("colour", _COLOUR_OF), ("shape", _SHAPE_OF), ("size", _SIZE_OF)):
            if word in names:
                found[field], named = names[word], True
                break
        else:
            if word not in ("a", "an", "the", "in", *OPEN_SHAPES):
                raise ValueError(f"{word!r} in {prompt!r} is not a word of the shapes grammar")
            named = named or word in OPEN_SHAPES
    if not named:
        raise ValueError(f"{phrase!r} in {prompt!r} names no thing")
    return Thing(found.get("colour"), found.get("shape"), found.get("size"))


def inverted(scene: Scene) -> Scene:
    """The same two things told the other way round: "A above B" becomes "B below A"."""
    relation = scene.relations[0]
    return replace(
        scene, things=scene.things[::-1], relations=(Relation(0, OPPOSITE[relation.name], 1),)
    )
