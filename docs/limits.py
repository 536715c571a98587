"""Writes the tables of docs/limits.md from the code: `python docs/limits.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import annotated_types as at
from pydantic.fields import FieldInfo

from atelier.bounds import BOUNDS
from atelier.images.request import ImageRequest
from atelier.protocols.openai.image_bodies import GenerationBody
from atelier.settings import Settings
from atelier.text.request import TextRequest

PAGE = Path(__file__).with_name("limits.md")
MARK = "<!-- made by docs/limits.py -->\n"

SETTINGS = {
    "max_body_bytes": ("Memory; the same for gRPC messages and unpacked bodies.", "413"),
    "max_pixels": ("Memory and time of the device.", "400"),
    "max_steps": ("Time of the device.", "400"),
    "max_images_per_request": ("The queue: instances and pictures of one request.", "400"),
    "max_queue_size": ("Memory and waiting time.", "429 with Retry-After"),
    "request_timeout": ("Everyone behind a request; queue and body included.", "504, or 408"),
    "result_seconds": ("Memory: pictures behind URLs, finished jobs, responses.", "404"),
    "result_bytes": ("The same; the oldest give way.", "404"),
    "max_model_len": ("The key-value cache: prompt and answer together.", "400"),
    "drain_seconds": ("The cluster's grace at the end of a pod.", "503"),
}


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def allowed(field: FieldInfo) -> str:
    """A field's own constraints in words."""
    words = []
    for one in field.metadata:
        for kind, name, text in (
            (at.Ge, "ge", "at least {}"),
            (at.Gt, "gt", "above {}"),
            (at.Le, "le", "at most {}"),
            (at.Lt, "lt", "below {}"),
            (at.MinLen, "min_length", "no fewer than {}"),
            (at.MaxLen, "max_length", "no longer than {}"),
        ):
            if isinstance(one, kind):
                words.append(text.format(f"{getattr(one, name):,}"))
    return ", ".join(words)


def page_tables() -> str:
    """Everything below the mark of the page."""
    defaults = Settings.model_fields
    fixed = [(one.what, one.most, one.protects, one.answer) for one in BOUNDS]
    chosen = [
        (f"`{name.upper()}`", _default(defaults[name]), protects, answer)
        for name, (protects, answer) in SETTINGS.items()
    ]
    text = "## By setting\n\n"
    text += table(("Setting", "Default", "What it protects", "Answer to more"), chosen)
    text += "\n## Fixed\n\n"
    text += table(("What", "Most", "What it protects", "Answer to more"), fixed)
    for title, model in (
        ("Fields of a picture request (v1, v2, gRPC)", ImageRequest),
        ("Fields of OpenAI's images routes", GenerationBody),
        ("Fields of a text request", TextRequest),
    ):
        rows = [
            (f"`{name}`", said)
            for name, field in model.model_fields.items()
            if (said := allowed(field))
        ]
        text += f"\n## {title}\n\n{table(('Field', 'Allowed'), rows)}"
    return text


def _default(field: FieldInfo) -> str:
    value: Any = field.default
    return (
        "the model's" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:g}"
    )


def renewed(text: str) -> str:
    """The page with its tables made anew."""
    return text.partition(MARK)[0] + MARK + "\n" + page_tables()


if __name__ == "__main__":
    PAGE.write_text(renewed(PAGE.read_text()))
