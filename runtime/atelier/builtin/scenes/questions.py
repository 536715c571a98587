"""Questions about a scene, with their one right answer each."""

import random
from collections.abc import Callable

from atelier.builtin.scenes.phrases import RELATION_PHRASES, SIZE_PHRASES
from atelier.builtin.scenes.wishes import prompt, with_article
from atelier.builtin.shapes.scene import COLOURS, OPPOSITE, RELATIONS, SHAPES, SIZES, Scene, Thing

NUMBERS = ("no", "one", "two", "three")
Answered = tuple[str, str]


def named(thing: Thing) -> str:
    """A thing in the grammar's words without an article, such as "large red circle"."""
    return " ".join(filter(None, (thing.size, thing.colour, thing.shape)))


class Asker:
    """Asks about one scene; every choice comes from `rng`."""

    def __init__(self, rng: random.Random, scene: Scene) -> None:
        self.rng, self.scene = rng, scene

    def ask(self) -> Answered:
        """A question and its answer."""
        kinds: list[tuple[int, Callable[[], Answered | None]]] = [
            (4, self.colour), (3, self.shape), (2, self.size), (5, self.neighbour), (3, self.place),
            (2, self.background), (2, self.count), (2, self.count_some), (3, self.presence), (3,
                self.looks),
            (4, self.relation), (2, self.whole), (1, self.absent),
        ]  # fmt: skip
        while True:
            (kind,) = self.rng.choices([kind for _, kind in kinds], [weight for weight, _ in kinds])
            answered = kind()
            if answered:
                return answered

    def name(self, thing: Thing) -> str:
        """Words that fit this thing alone, such as "circle", "red shape" or "red circle"."""
        others = [other for other in self.scene.things if other is not thing]
        names = [f"{thing.colour} {thing.shape}"]
        if all(other.shape != thing.shape for other in others):
            names += [str(thing.shape)] * 3
        if all(other.colour != thing.colour for other in others):
            names += [f"{thing.colour} shape"]
        return self.rng.choice(names)

    def thing(self) -> Thing:
        """One of the scene's things."""
        return self.rng.choice(self.scene.things)

    def missing(self, words: tuple[str, ...], present: set[str]) -> str:
        """A word of the grammar that does not occur."""
        return self.rng.choice([word for word in words if word not in present])

    def shapes(self) -> set[str]:
        return {str(thing.shape) for thing in self.scene.things}

    def colours(self) -> set[str]:
        return {str(thing.colour) for thing in self.scene.things}

    def colour(self) -> Answered | None:
        thing = self.thing()
        if sum(other.shape == thing.shape for other in self.scene.things) > 1:
            return None
        word = self.rng.choice(("colour", "color"))
        question = self.rng.choice(
            (f"Which {word} is the {thing.shape}?", f"What {word} is the {thing.shape}?",
             f"What is the {word} of the {thing.shape}?",
             f"Which {word} does the {thing.shape} have?",
             f"Tell me the {word} of the {thing.shape}.", f"The {thing.shape} is of what {word}?")
        )  # fmt: skip
        return question, f"The {thing.shape} is {thing.colour}."

    def shape(self) -> Answered | None:
        thing = self.thing()
        if sum(other.colour == thing.colour for other in self.scene.things) > 1:
            return None
        question = self.rng.choice(
            (f"Which shape is {thing.colour}?", f"What shape is {thing.colour}?",
                f"What is {thing.colour}?",
             f"What is the {thing.colour} shape?", f"What shape is the {thing.colour} one?",
             f"What is the {thing.colour} thing?")
        )  # fmt: skip
        return question, f"The {thing.colour} shape is {with_article(str(thing.shape))}."

    def size(self) -> Answered:
        thing = self.thing()
        name = self.name(thing)
        question = self.rng.choice(
            (f"How big is the {name}?", f"What size is the {name}?", f"How large is the {name}?",
             f"What is the size of the {name}?")
        )  # fmt: skip
        return (
            question,
            (
                f"The {name} is {thing.size}."
                if thing.size
                else f"The scene does not say how big the {name} is."
            ),
        )

    def stands(self, first: int, second: int) -> str | None:
        """How thing number `first` stands to `second`; None where the scene does not say."""
        for relation in self.scene.relations:
            if (relation.subject, relation.object) == (first, second):
                return relation.name
            if (relation.subject, relation.object) == (second, first):
                return OPPOSITE[relation.name]
        return None

    def related(self) -> tuple[int, int, str] | None:
        """The numbers of two things that the scene relates, in either order, and how the first
        stands to the second."""
        if not self.scene.relations:
            return None
        relation = self.rng.choice(self.scene.relations)
        if self.rng.random() < 0.5:
            return relation.subject, relation.object, relation.name
        return relation.object, relation.subject, OPPOSITE[relation.name]

    def neighbour(self) -> Answered | None:
        related = self.related()
        if related is None:
            return None
        _, second, stands = related
        numbers = range(len(self.scene.things))
        asked = stands if self.rng.random() < 0.75 else self.rng.choice(RELATIONS)
        found = [number for number in numbers if self.stands(number, second) == asked]
        if len(found) > 1:
            return None
        name = self.name(self.scene.things[second])
        phrase = self.rng.choice(RELATION_PHRASES[asked])
        question = self.rng.choice(
            (f"What is {phrase} the {name}?", f"Which shape is {phrase} the {name}?",
             f"What do you see {phrase} the {name}?", f"What stands {phrase} the {name}?",
             f"What is there {phrase} the {name}?")
        )  # fmt: skip
        if not found:
            return question, f"Nothing is {asked} the {name}."
        neighbour = self.scene.things[found[0]]
        return question, f"{with_article(named(neighbour)).capitalize()} is {asked} the {name}."

    def place(self) -> Answered | None:
        number = self.rng.randrange(len(self.scene.things))
        thing = self.scene.things[number]
        name = self.name(thing)
        question = self.rng.choice(
            (f"Where is the {name}?", f"Where does the {name} stand?",
                f"Where can I find the {name}?",
             f"Where do you see the {name}?")
        )  # fmt: skip
        if len(self.scene.things) == 1:
            return question, f"The {name} is alone in the scene."
        if not self.scene.relations:
            return question, f"The scene does not say where the {name} is."
        places = []
        for other in range(len(self.scene.things)):
            stands = self.stands(number, other)
            if stands:
                places.append(
                    f"{stands} the {self.scene.things[other].colour}"
                    f" {self.scene.things[other].shape}"
                )
        return question, f"The {name} is {' and '.join(places)}."

    def background(self) -> Answered:
        word = self.rng.choice(("colour", "color"))
        question = self.rng.choice(
            (f"What {word} is the background?", f"Which {word} has the background?",
                "What is the background?",
             "What is behind the shapes?", f"What is the {word} of the background?")
        )  # fmt: skip
        if self.scene.background is None:
            return question, "The scene does not name a background."
        return question, f"The background is {self.scene.background}."

    def count(self) -> Answered:
        question = self.rng.choice(
            ("How many shapes are there?", "How many shapes do you see?",
                "How many things are in the scene?",
             "Count the shapes.", "How many objects are there?", "How many shapes does it have?")
        )  # fmt: skip
        number = len(self.scene.things)
        return (
            question,
            "There is one shape." if number == 1 else f"There are {NUMBERS[number]} shapes.",
        )

    def count_some(self) -> Answered:
        if self.rng.random() < 0.5:
            pool = [str(thing.shape) for thing in self.scene.things] * 2 + [
                self.missing(SHAPES, self.shapes())
            ]
            word = self.rng.choice(pool)
            number = sum(thing.shape == word for thing in self.scene.things)
            one, many = word, plural(word)
        else:
            pool = [str(thing.colour) for thing in self.scene.things] * 2 + [
                self.missing(COLOURS, self.colours())
            ]
            word = self.rng.choice(pool)
            number = sum(thing.colour == word for thing in self.scene.things)
            one, many = f"{word} shape", f"{word} shapes"
        question = self.rng.choice(
            (f"How many {many} are there?", f"How many {many} do you see?", f"Count the {many}.")
        )
        return (
            question,
            f"There is one {one}." if number == 1 else f"There are {NUMBERS[number]} {many}.",
        )

    def presence(self) -> Answered:
        question = self.rng.choice(
            ("Is there {}?", "Do you see {}?", "Can you see {}?", "Does it have {}?")
        )
        if self.rng.random() < 0.5:
            thing = self.thing()
            if self.rng.random() < 0.5:
                said = f"{thing.colour} {thing.shape}"
                return question.format(with_article(said)), f"Yes, there is {with_article(said)}."
            count = sum(other.shape == thing.shape for other in self.scene.things)
            if count == 1:
                said = f"{thing.colour} {thing.shape}"
                return (
                    question.format(with_article(str(thing.shape))),
                    f"Yes, there is {with_article(said)}.",
                )
        shape = self.missing(SHAPES, self.shapes())
        if self.rng.random() < 0.5:
            return question.format(with_article(shape)), f"No, there is no {shape}."
        thing = self.thing()
        colour = self.missing(
            COLOURS,
            {str(other.colour) for other in self.scene.things if other.shape == thing.shape},
        )
        said = f"{colour} {thing.shape}"
        return question.format(with_article(said)), f"No, there is no {said}."

    def looks(self) -> Answered | None:
        thing = self.thing()
        if sum(other.shape == thing.shape for other in self.scene.things) > 1:
            return None
        right = f"the {thing.shape} is {thing.colour}."
        if self.rng.random() < 0.3 and thing.size:
            size = self.rng.choice(SIZES)
            said = self.rng.choice((size, *SIZE_PHRASES[size]))
            return (
                f"Is the {thing.shape} {said}?",
                f"{_yes(size == thing.size)}, the {thing.shape} is {thing.size}.",
            )
        colour = (
            str(thing.colour)
            if self.rng.random() < 0.5
            else self.missing(COLOURS, {str(thing.colour)})
        )
        return f"Is the {thing.shape} {colour}?", f"{_yes(colour == thing.colour)}, {right}"

    def relation(self) -> Answered | None:
        related = self.related()
        if related is None:
            return None
        first, second, stands = related
        asked = stands if self.rng.random() < 0.5 else self.rng.choice(RELATIONS)
        one, other = self.name(self.scene.things[first]), self.name(self.scene.things[second])
        question = f"Is the {one} {self.rng.choice(RELATION_PHRASES[asked])} the {other}?"
        return question, f"{_yes(asked == stands)}, the {one} is {stands} the {other}."

    def whole(self) -> Answered:
        if self.rng.random() < 0.6:
            question = self.rng.choice(
                ("What do you see?", "Describe the scene.", "What is in the scene?",
                    "What does the picture show?",
                 "Tell me about the scene.", "What is in the picture?")
            )  # fmt: skip
            several = len(self.scene.things) > 1 and not self.scene.relations
            return question, f"There {'are' if several else 'is'} {prompt(self.scene)}."
        if self.rng.random() < 0.5:
            question = self.rng.choice(
                ("Which shapes are there?", "Name the shapes.", "List the shapes.")
            )
            return question, _listed([str(thing.shape) for thing in self.scene.things])
        question = self.rng.choice(
            (
                "Which colours do the shapes have?",
                "Name the colours of the shapes.",
                "List the colors of the shapes.",
            )
        )
        return question, _listed([str(thing.colour) for thing in self.scene.things])

    def absent(self) -> Answered:
        shape = self.missing(SHAPES, self.shapes())
        word = self.rng.choice(("colour", "color"))
        question = self.rng.choice(
            (f"Which {word} is the {shape}?", f"What {word} is the {shape}?",
                f"Where is the {shape}?",
             f"How big is the {shape}?",
             f"What is {self.rng.choice(RELATION_PHRASES['above'])} the {shape}?")
        )  # fmt: skip
        return question, f"There is no {shape} in the scene."


def plural(shape: str) -> str:
    """More than one of a shape."""
    return shape + ("es" if shape.endswith(("s", "x")) else "s")


def _yes(true: bool) -> str:
    return "Yes" if true else "No"


def _listed(words: list[str]) -> str:
    words = list(dict.fromkeys(words))
    text = words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]
    return text.capitalize() + "."
