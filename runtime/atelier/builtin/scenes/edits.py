"""Changes to a scene, as somebody asks for them after seeing it."""

import random
from collections.abc import Callable
from dataclasses import replace

from atelier.builtin.scenes.phrases import (
    COLOUR_PHRASES,
    PLACE_PHRASES,
    RELATION_PHRASES,
    SHAPE_PHRASES,
    SIZE_PHRASES,
)
from atelier.builtin.scenes.wishes import Speaker, with_article
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

Edited = tuple[str, Scene]


class Editor:
    """Asks for one change of one scene; every choice comes from `rng`."""

    def __init__(self, rng: random.Random, scene: Scene) -> None:
        self.rng, self.scene, self.speaker = rng, scene, Speaker(rng)

    def edit(self) -> Edited:
        """What the user says, and the scene after it."""
        kinds: list[tuple[int, Callable[[], Edited | None]]] = [
            (5, self.recolour), (2, self.resize), (3, self.reshape), (4, self.ground), (3,
                self.move), (2, self.swap),
            (3, self.add), (2, self.remove),
        ]  # fmt: skip
        while True:
            (kind,) = self.rng.choices([kind for _, kind in kinds], [weight for weight, _ in kinds])
            edited = kind()
            if edited and len(set(edited[1].things)) == len(edited[1].things):
                return self.speaker.polish(edited[0]), edited[1]

    def name(self, number: int) -> str:
        """Words for one thing, such as "the circle" or "the red one"."""
        thing, things = self.scene.things[number], self.scene.things
        if len(things) == 1 and self.rng.random() < 0.5:
            return "it"
        names = []
        if sum(other.shape == thing.shape for other in things) == 1:
            names += [f"the {thing.shape}"] * 3
        if sum(other.colour == thing.colour for other in things) == 1:
            names += [f"the {thing.colour} one", f"the {thing.colour} shape"]
        return self.rng.choice([*names, f"the {thing.colour} {thing.shape}"])

    def chosen(self) -> tuple[int, Thing]:
        number = self.rng.randrange(len(self.scene.things))
        return number, self.scene.things[number]

    def put(self, number: int, thing: Thing) -> Scene:
        """The scene with another thing at one place."""
        things = list(self.scene.things)
        things[number] = thing
        return replace(self.scene, things=tuple(things))

    def other(self, words: tuple[str, ...], *but: str | None) -> str:
        return self.rng.choice([word for word in words if word not in but])

    def recolour(self) -> Edited:
        number, thing = self.chosen()
        colour = self.other(COLOURS, thing.colour, self.scene.background)
        said = self.speaker.pick(colour, COLOUR_PHRASES)
        form = self.rng.choice(
            ("make {} {}", "make {} {} please", "make {} {} instead", "{} should be {}",
                "paint {} {}", "colour {} {}",
             "I want {} to be {}", "change {} to {}", "can {} be {}?", "please make {} {}",
             "I'd rather have {} in {}")
        )  # fmt: skip
        return form.format(self.name(number), said), self.put(number, replace(thing, colour=colour))

    def resize(self) -> Edited:
        number, thing = self.chosen()
        size = self.other(SIZES, thing.size)
        words = {"small": ("smaller", "shrink {}"), "large": ("bigger", "enlarge {}")}[size]
        if self.rng.random() < 0.2:
            text = words[1].format(self.name(number))
        else:
            said = self.rng.choice((words[0], words[0], self.speaker.pick(size, SIZE_PHRASES)))
            form = self.rng.choice(
                ("make {} {}", "{} should be {}", "please make {} {}", "I want {} to be {}")
            )
            text = form.format(self.name(number), said)
        return text, self.put(number, replace(thing, size=size))

    def reshape(self) -> Edited:
        number, thing = self.chosen()
        shape = self.other(SHAPES, thing.shape)
        form = self.rng.choice(
            ("turn {} into {}", "make {} {}", "{} should be {}", "make {} {} instead",
                "change {} to {}",
             "change {} into {}", "replace {} by {}", "please turn {} into {}")
        )  # fmt: skip
        said = with_article(self.speaker.pick(shape, SHAPE_PHRASES))
        return form.format(self.name(number), said), self.put(number, replace(thing, shape=shape))

    def ground(self) -> Edited:
        if self.scene.background and self.rng.random() < 0.2:
            text = self.rng.choice(
                ("without the background", "remove the background", "no background please")
            )
            return text, replace(self.scene, background=None)
        colour = self.other(
            COLOURS, self.scene.background, *(thing.colour for thing in self.scene.things)
        )
        said = self.speaker.pick(colour, COLOUR_PHRASES)
        form = self.rng.choice(
            ("make the background {}", "on {a} background please", "put it on {a} background",
                "{a} background please",
             "the background should be {}", "change the background to {}", "with {a} background",
             "now on {}",
             "I'd like {a} background", "and {a} background")
        )  # fmt: skip
        return form.format(said, a=with_article(said)), replace(self.scene, background=colour)

    def move(self) -> Edited | None:
        if len(self.scene.things) != 2:
            return None
        first = self.rng.randrange(2)
        now = self.scene.relations[0].name if self.scene.relations else None
        asked = self.rng.choice(
            [name for name in RELATIONS if now is None or name != (now, OPPOSITE[now])[first]]
        )
        form = self.rng.choice(
            ("put {} {} {}", "move {} {} {}", "{} should be {} {}", "place {} {} {}",
                "put {} {} {} instead",
             "no, {} should stand {} {}")
        )  # fmt: skip
        text = form.format(
            self.name(first), self.rng.choice(RELATION_PHRASES[asked]), self.name(1 - first)
        )
        relation = Relation(0, asked if first == 0 else OPPOSITE[asked], 1)
        return text, replace(self.scene, relations=(relation,))

    def swap(self) -> Edited | None:
        if len(self.scene.things) != 2:
            return None
        text = self.rng.choice(
            ("swap them", "swap the two", "swap the shapes", "exchange the two shapes",
                "the other way round",
             "please swap them", "let them change places")
        )  # fmt: skip
        return text, replace(self.scene, things=self.scene.things[::-1])

    def add(self) -> Edited | None:
        if len(self.scene.things) != 1:
            return None
        old = self.scene.things[0]
        colour = self.other(COLOURS, self.scene.background)
        said = Thing(colour, self.rng.choice(SHAPES), self.rng.choice((None, None, *SIZES)))
        name = self.rng.choice(RELATIONS)
        place = self.rng.choice((*PLACE_PHRASES[name], f"{name} the {old.shape}"))
        form = self.rng.choice(
            (
                "add {} {}",
                "put {} {}",
                "and {} {}",
                "add {} {} please",
                "now add {} {}",
                "place {} {}",
                "also {} {}",
            )
        )
        scene = Scene((said, old), (Relation(0, name, 1),), self.scene.background)
        return form.format(self.speaker.thing(said), place), scene

    def remove(self) -> Edited | None:
        if len(self.scene.things) != 2:
            return None
        number, _ = self.chosen()
        form = self.rng.choice(
            ("remove {}", "without {}", "take {} away", "drop {}", "leave {} out", "delete {}")
        )
        kept = self.scene.things[1 - number]
        return form.format(self.name(number)), Scene((kept,), (), self.scene.background)
