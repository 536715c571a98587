"""Scenes as JSON: the whole scene in one fixed form, or just the keys that somebody names."""

import json
import random
from typing import Any

from atelier.builtin.scenes.wishes import prompt
from atelier.builtin.shapes.scene import Scene, Thing

ASKS_FOR_KEYS = (
    " as JSON with the keys {keys}", " as JSON with {keys}",
    " as a JSON object with the keys {keys}",
    ". Answer as JSON with the keys {keys}.", ", JSON with {keys} only", ". Give {keys} as JSON",
    " in JSON, with keys {keys}",
)  # fmt: skip
Pieces = list[tuple[str, bool]]


def scene_json(scene: Scene) -> str:
    """The whole scene; what is not said has no key."""
    return json.dumps(_whole(scene))


def _whole(scene: Scene) -> dict[str, Any]:
    whole: dict[str, Any] = {"objects": [_object(thing) for thing in scene.things]}
    if scene.relations:
        whole["relations"] = [
            {
                "subject": _short(scene, relation.subject),
                "relation": relation.name,
                "object": _short(scene, relation.object),
            }
            for relation in scene.relations
        ]
    if scene.background:
        whole["background"] = scene.background
    return whole


def _object(thing: Thing) -> dict[str, str | None]:
    said = {"shape": thing.shape, "color": thing.colour}
    return said | {"size": thing.size} if thing.size else said


def _short(scene: Scene, number: int) -> str:
    return f"{scene.things[number].colour} {scene.things[number].shape}"


def chosen_values(rng: random.Random, scene: Scene) -> dict[str, Any]:
    """Some keys that suit the scene, in random order, with their values; null is what the scene
    does not say."""
    values: dict[str, Any] = {
        "prompt": prompt(scene),
        "count": len(scene.things),
        "background": scene.background,
    }
    colour = rng.choice(("color", "colour"))
    if len(scene.things) == 1:
        thing = scene.things[0]
        values |= {"shape": thing.shape, colour: thing.colour, "size": thing.size}
    else:
        values |= {
            "shapes": [thing.shape for thing in scene.things],
            f"{colour}s": [t.colour for t in scene.things],
        }
        values |= {"objects": [_object(thing) for thing in scene.things]}
    if len(scene.things) == 2 and scene.relations:
        values["relation"] = scene.relations[0].name
    keys = rng.sample(list(values), rng.randint(1, min(4, len(values))))
    return {key: values[key] for key in keys}


def pieces(value: Any) -> Pieces:
    """JSON in pieces: False marks what a schema imposes (braces, keys), True what is the model's to
    choose."""
    if isinstance(value, dict):
        written: Pieces = [("{", False)]
        for number, (key, item) in enumerate(value.items()):
            written.append((f"{', ' if number else ''}{json.dumps(key)}: ", False))
            written += pieces(item)
        return [*written, ("}", False)]
    if isinstance(value, list):
        written = [("[", False)]
        for number, item in enumerate(value):
            written += [(", ", True)] if number else []
            written += pieces(item)
        return [*written, ("]", True)]
    if isinstance(value, str):
        return [('"', False), (json.dumps(value)[1:], True)]
    return [(json.dumps(value), True)]
