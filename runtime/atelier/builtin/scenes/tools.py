"""Tools as a client offers them, calls as the model writes them, and what a picture tool may
answer."""

import json
import random
from typing import Any

Tool = dict[str, Any]

# The tool as the documentation shows it.
IMAGE_TOOL: Tool = {
    "type": "function",
    "function": {
        "name": "generate_image",
        "description": "Draws a picture of a scene.",
        "parameters": {
            "type": "object",
            "properties": {"prompt": {"type": "string", "description": "The scene prompt"}},
            "required": ["prompt"],
        },
    },
}

NAMES = (
    "create_image",
    "draw_picture",
    "make_image",
    "paint_scene",
    "text_to_image",
    "image_generation",
    "draw",
)
DESCRIPTIONS = (
    "Generates an image.", "Draws a picture of a scene.", "Generate an image from a text prompt.",
    "Makes a picture.",
    "Create an image of the described scene.", "Paints what the prompt says.",
    "Draw a picture from a prompt",
    "Draws simple shapes and returns the picture.", "Text to image.",
    "Generate a picture of shapes.",
    "Draw a picture.",
)  # fmt: skip
PROMPT_DESCRIPTIONS = (
    "The scene", "What to draw", "The scene prompt", "Text prompt", "What the picture shows",
    "A description of the image",
    "Scene prompt, such as 'a red circle above a blue square'", "The prompt",
    "What the picture should show.",
)  # fmt: skip
EXTRAS: dict[str, Tool] = {
    "seed": {"type": "integer"},
    "size": {"type": "string", "enum": ["128x128", "256x256"]},
    "width": {"type": "integer", "minimum": 64},
    "height": {"type": "integer", "minimum": 64},
    "steps": {"type": "integer", "description": "Denoising steps"},
    "negative_prompt": {"type": "string", "description": "What must not be seen"},
    "n": {"type": "integer", "default": 1},
}
OTHERS = (
    ("get_weather", "Tells the weather.", "city"),
    ("search", "Searches the web.", "query"),
    ("get_time", "The time in a time zone.", "zone"),
    ("calculate", "Evaluates an expression.", "expression"),
    ("send_mail", "Sends a mail.", "text"),
    ("get_current_weather", "Get the current weather in a given location", "location"),
)
FAILURES = (
    "error",
    "out of memory",
    "timeout",
    "queue full",
    "model not ready",
    "connection refused",
    "internal error",
)


def image_tool(rng: random.Random) -> Tool:
    """A tool that draws, mostly called generate_image."""
    name = "generate_image" if rng.random() < 0.85 else rng.choice(NAMES)
    described: Tool = {"type": "string"}
    if rng.random() < 0.6:
        described["description"] = rng.choice(PROMPT_DESCRIPTIONS)
    extras = rng.sample(list(EXTRAS), rng.choice((0, 0, 0, 1, 2)))
    properties = {"prompt": described} | {extra: EXTRAS[extra] for extra in extras}
    return _tool(rng, name, rng.choice(DESCRIPTIONS), properties, "prompt")


def other_tool(rng: random.Random) -> Tool:
    """A tool that does not draw."""
    name, description, argument = rng.choice(OTHERS)
    return _tool(rng, name, description, {argument: {"type": "string"}}, argument)


def _tool(rng: random.Random, name: str, description: str, properties: Tool, required: str) -> Tool:
    parameters: Tool = {"type": "object", "properties": properties}
    if rng.random() < 0.9:
        parameters["required"] = [required]
    if rng.random() < 0.2:
        parameters["additionalProperties"] = False
    function: Tool = {"name": name}
    if rng.random() < 0.9:
        function["description"] = description
    function["parameters"] = parameters
    if rng.random() < 0.1:
        function["strict"] = rng.choice((True, False, None))
    entries = list(function.items())
    if rng.random() < 0.1:
        rng.shuffle(entries)
    return {"type": "function", "function": dict(entries)}


def call(name: str, said: str) -> Tool:
    """The assistant message that calls the picture tool with the scene prompt `said`."""
    function = {"name": name, "arguments": {"prompt": said}}
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": function}],
    }


def forced_answers(name: str, said: str) -> list[tuple[str, str]]:
    """What an engine that forces a call makes the model write: the part it imposes, and the
    rest."""
    return [
        ('{"prompt": "', said + '"}'),
        (f'[{{"name": "{name}", "parameters": {{"prompt": "', said + '"}}]'),
    ]


def success(rng: random.Random) -> str:
    """What a picture tool answers when all went well."""
    number = "".join(rng.choices("0123456789abcdef", k=rng.choice((4, 8, 12))))
    host = rng.choice(
        (
            "http://127.0.0.1:8080/images/",
            "https://pictures.example.com/",
            "/v1/images/files/",
            "file:///tmp/",
        )
    )
    url = f"{host}{number}.png"
    answers: tuple[Any, ...] = (
        {"url": url}, {"status": "ok", "url": url}, {"status": "ok"}, {"ok": True},
        {"image": f"data:image/png;base64,{number}"},
        {"data": [{"url": url}]}, {"created": rng.randrange(10**9), "data": [{"url": url,
            "seed": 7}]},
        {"seed": 7, "image": url},
        "ok", "done", "The picture is ready.", "image generated", url, f"saved as {number}.png",
        "success", "[image]",
        {"result": "done"}, {"success": True, "path": f"{number}.png"}, "Image created.", "Done.",
    )  # fmt: skip
    return _text(rng.choice(answers))


def failure(rng: random.Random) -> str:
    """What a picture tool answers when it failed."""
    reason = rng.choice(FAILURES)
    answers: tuple[Any, ...] = (
        {"error": reason}, {"error": {"message": reason, "code": 503}}, {"status": "error",
            "message": reason},
        f"Error: {reason}", f"error: {reason}", "failed", f"failed: {reason}",
        {"status": "failed"}, {"ok": False},
    )  # fmt: skip
    return _text(rng.choice(answers))


def _text(answer: Any) -> str:
    return answer if isinstance(answer, str) else json.dumps(answer)
