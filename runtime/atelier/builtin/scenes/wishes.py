"""Wishes: a scene as somebody would ask for it, and the one scene that a wish means.

A wish is a `Scene` in which None is unsaid. `complete` fills in what a picture needs, always the
same way: an unsaid shape is a circle, an unsaid colour the first of `DEFAULT_COLOURS` that the wish
does not name and no other thing got. Sizes, backgrounds and relations that are not said stay
unsaid.
"""

import random
from dataclasses import replace

from atelier.builtin.scenes.phrases import (
    BESIDE,
    CLOSINGS,
    COLOUR_LIKENESSES,
    COLOUR_PHRASES,
    GREETINGS,
    PLACE_PHRASES,
    RELATION_PHRASES,
    REQUESTS,
    SHAPE_LOOKS,
    SHAPE_PHRASES,
    SIDE_PHRASES,
    SIZE_PHRASES,
    Phrases,
)
from atelier.builtin.shapes.prompts import describe
from atelier.builtin.shapes.scene import OPPOSITE, Relation, Scene, Thing, is_held_out, random_scene

DEFAULT_SHAPE = "circle"
DEFAULT_COLOURS = ("red", "blue", "green", "yellow", "purple", "orange", "white")
_UNUSED = random.Random(0)  # plain descriptions draw nothing from it


def complete(wish: Scene) -> Scene:
    """The one scene that a wish means (the rules stand in the module's first lines)."""
    named = {thing.colour for thing in wish.things} | {wish.background}
    free = iter([colour for colour in DEFAULT_COLOURS if colour not in named])
    things = (
        replace(thing, shape=thing.shape or DEFAULT_SHAPE, colour=thing.colour or next(free))
        for thing in wish.things
    )
    return replace(wish, things=tuple(things))


def prompt(scene: Scene) -> str:
    """The scene in the picture model's own words, such as "a large red circle above a blue
    square"."""
    return describe(scene, _UNUSED, plain=True)


def held_out(scene: Scene) -> bool:
    """The picture model's split; things without a relation count as if they stood left and
    right."""
    if len(scene.things) > 1 and not scene.relations:
        chain = (Relation(k, "left of", k + 1) for k in range(len(scene.things) - 1))
        scene = replace(scene, relations=tuple(chain))
    return is_held_out(scene)


def random_wish(rng: random.Random, of_held_out: bool, count: int | None = None) -> Scene:
    """A wish, with some of it unsaid, whose completed scene lies on the given side of the split."""
    while True:
        scene = random_scene(rng, count or rng.choice((1, 1, 2, 2, 2, 2, 2, 3)))
        things = tuple(_partly_said(thing, rng) for thing in scene.things)
        background = scene.background if rng.random() < 0.4 else None
        wish = Scene(things, scene.relations if rng.random() < 0.9 else (), background)
        meant = complete(wish)
        if len(set(meant.things)) == len(things) and held_out(meant) == of_held_out:
            return wish


def _partly_said(thing: Thing, rng: random.Random) -> Thing:
    draw = rng.random()
    if draw < 0.02:
        return Thing(None, None, thing.size)
    if draw < 0.10:
        return replace(thing, colour=None)
    return replace(thing, shape=None) if draw < 0.16 else thing


def with_article(words: str) -> str:
    """`words` behind "a" or "an"."""
    return ("an " if words[0] in "aeio" else "a ") + words


class Speaker:
    """Says scenes in many ways; every choice comes from `rng`. `plainly` is the share of the
    grammar's own words."""

    def __init__(self, rng: random.Random, plainly: float | None = None) -> None:
        self.rng = rng
        self.plainly = rng.choice((0.3, 0.6, 0.9)) if plainly is None else plainly

    def pick(self, word: str, phrases: Phrases) -> str:
        """The word itself or one of its phrases."""
        return (
            word
            if self.rng.random() < self.plainly or not phrases[word]
            else self.rng.choice(phrases[word])
        )

    def thing(self, thing: Thing) -> str:
        """A noun phrase with its article, such as "a tiny crimson disc" or "something round and
        blue"."""
        size = self.pick(thing.size, SIZE_PHRASES) if thing.size else ""
        if thing.shape is None or self.rng.random() < 0.12:
            return self._something(thing, size)
        noun = self.pick(thing.shape, SHAPE_PHRASES)
        if thing.colour is None:
            return with_article(f"{size} {noun}".strip())
        if self.rng.random() < 0.05:
            likeness = self.rng.choice(COLOUR_LIKENESSES[thing.colour])
            form = self.rng.choice(
                ("{} the colour of {}", "{} as {colour} as {}", "{} in the color of {}")
            )
            return form.format(
                with_article(f"{size} {noun}".strip()), likeness, colour=thing.colour
            )
        colour = self.pick(thing.colour, COLOUR_PHRASES)
        if self.rng.random() < 0.08:
            form = self.rng.choice(
                ("in {}", "that is {}", "which is {}", "of {} colour", "coloured {}")
            )
            return with_article(f"{size} {noun}".strip()) + " " + form.format(colour)
        order = (colour, size) if self.rng.random() < 0.04 else (size, colour)
        return with_article(" ".join(filter(None, (*order, noun))))

    def _something(self, thing: Thing, size: str) -> str:
        looks = [size] if size else []
        if thing.colour:
            looks.append(self.pick(thing.colour, COLOUR_PHRASES))
        if thing.shape:
            looks.append(self.rng.choice(SHAPE_LOOKS[thing.shape]))
        if not looks:
            return self.rng.choice(("something", "a shape", "some shape", "anything", "a thing"))
        self.rng.shuffle(looks)
        if self.rng.random() < 0.7 or any(look.startswith("like") for look in looks):
            last = self.rng.choice((" and ", " and ", ", ")) + looks[-1] if len(looks) > 1 else ""
            listed = ", ".join(looks[:-1] or looks) + last
            return (
                self.rng.choice(("something ", "something ", "something that is ", "anything "))
                + listed
            )
        return with_article(" ".join(looks)) + self.rng.choice(
            (" thing", " shape", " object", " figure")
        )

    def background(self, colour: str) -> str:
        """Where it stands, such as "on a yellow background"."""
        if self.rng.random() < self.plainly:
            return f"on {with_article(colour)} background"
        said = self.pick(colour, COLOUR_PHRASES)
        form = self.rng.choice(
            ("on {}", "on {} ground", "on {a} background", "in front of {a} background",
                "against {a} background",
             "with {a} background", "before {a} background", "against {}", "on {a} canvas",
             "on {a} backdrop")
        )  # fmt: skip
        return form.format(said, a=with_article(said))

    def relation(self, name: str) -> str:
        """A relation's words; "left of" may also be left open as "next to"."""
        if name == "left of" and self.rng.random() < 0.1:
            return self.rng.choice(BESIDE)
        return name if self.rng.random() < self.plainly else self.rng.choice(RELATION_PHRASES[name])

    def pair(self, first: str, name: str, second: str) -> str:
        """Two noun phrases and how the first stands to the second."""
        frame = self.rng.random()
        if frame < 0.64:
            verb = self.rng.choice(
                ("", "", "", "", "", "", "that is ", "sitting ", "which is ", "standing ", "is ")
            )
            return f"{first} {verb}{self.relation(name)} {second}"
        if frame < 0.76:
            place = self.rng.choice(PLACE_PHRASES[OPPOSITE[name]])
            return self.rng.choice(
                (f"{first} with {second} {place}", f"{first} and {place} {second}")
            )
        if frame < 0.88:
            here, there = SIDE_PHRASES[name]
            joint = self.rng.choice((" and ", ", ", ", and "))
            return self.rng.choice(
                (f"{first} {here}{joint}{second} {there}", f"{here} {first}{joint}{there} {second}")
            )
        return f"{self.rng.choice(RELATION_PHRASES[name])} {second}, {first}"

    def scene(self, wish: Scene) -> str:
        """The scene as a noun phrase, without any request around it."""
        phrases = [self.thing(thing) for thing in wish.things]
        if not wish.relations:
            last = (
                self.rng.choice((" and ", " and ", " with ", " plus ", ", "))
                if len(phrases) == 2
                else " and "
            )
            text = ", ".join(phrases[:-1]) + last + phrases[-1] if len(phrases) > 1 else phrases[0]
        elif len(phrases) == 2:
            text = self.pair(phrases[0], wish.relations[0].name, phrases[1])
        else:
            near, far = wish.relations
            links = (
                ("and ", "and ", "and also ")
                if far.subject == 0
                else ("", "", "that is ", "which is ")
            )
            text = f"{phrases[0]} {self.relation(near.name)} {phrases[1]} "
            text += f"{self.rng.choice(links)}{self.relation(far.name)} {phrases[2]}"
        if wish.background:
            ground = self.background(wish.background)
            text = f"{ground}, {text}" if self.rng.random() < 0.15 else f"{text} {ground}"
        return text

    def request(self, wish: Scene) -> str:
        """The wish as a user's whole message."""
        return self.polish(self.rng.choice(REQUESTS).format(self.scene(wish)))

    def polish(self, text: str) -> str:
        """Capitals, full stops, greetings and thanks, present or not."""
        if self.rng.random() < 0.08:
            text = text.removeprefix("a ")
        if self.rng.random() < 0.5:
            text = text[0].upper() + text[1:]
        if text[-1] not in "?.!" and self.rng.random() < 0.4:
            text += self.rng.choice((".", ".", ".", "!"))
        if self.rng.random() < 0.08:
            text = self.rng.choice(GREETINGS) + text
        if self.rng.random() < 0.04:
            text += ("" if text[-1] in "?.!" else ".") + self.rng.choice(CLOSINGS)
        loudness = self.rng.random()
        return text.upper() if loudness < 0.01 else text.title() if loudness < 0.02 else text
