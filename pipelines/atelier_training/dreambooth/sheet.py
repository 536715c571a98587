"""The contact sheet: every prompt and seed before and after, as one PNG and one HTML file that
stands alone."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

SIDE, GAP, LABEL = 128, 6, 16  # pixels of the PNG
PNG, HTML = "contact-sheet.png", "contact-sheet.html"
STYLE = (
    "body{font:14px system-ui;margin:2em}table{border-collapse:collapse}"
    "td,th{padding:4px 10px;text-align:left}"
    "img{width:192px;image-rendering:auto;border-radius:4px}tr{border-bottom:1px solid #ddd}"
)


@dataclass(frozen=True)
class Pair:
    """One prompt and seed, before and after; `group` is subject or prior."""

    group: str
    prompt: str
    seed: int
    before: Image.Image
    after: Image.Image


def write_sheet(folder: Path, pairs: Sequence[Pair], scores: Mapping[str, float]) -> None:
    """Write both files into `folder`."""
    contact_sheet(pairs).save(folder / PNG)
    (folder / HTML).write_text(contact_page(pairs, scores), encoding="utf-8")


def contact_sheet(pairs: Sequence[Pair], columns: int = 4) -> Image.Image:
    """Cells of before | after with the prompt underneath, `columns` cells a row."""
    width, height = 2 * SIDE + GAP, SIDE + LABEL + GAP
    rows = -(-len(pairs) // columns)
    sheet = Image.new("RGB", (columns * (width + 2 * GAP), rows * height + GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for index, pair in enumerate(pairs):
        x, y = index % columns * (width + 2 * GAP) + GAP, index // columns * height + GAP
        for offset, picture in ((0, pair.before), (SIDE + GAP, pair.after)):
            sheet.paste(picture.resize((SIDE, SIDE)), (x + offset, y))
        pen.text((x, y + SIDE + 2), f"{pair.prompt[:40]} ({pair.seed})", fill="black")
    return sheet


def contact_page(pairs: Sequence[Pair], scores: Mapping[str, float]) -> str:
    """The same as HTML with the pictures inside, and the scores."""
    table = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{value:.3f}</td></tr>"
        for name, value in scores.items()
    )
    rows = "".join(
        f"<tr><td>{html.escape(pair.group)}</td><td>{html.escape(pair.prompt)}<br>seed"
        f" {pair.seed}</td><td>{_tag(pair.before)}</td><td>{_tag(pair.after)}</td></tr>"
        for pair in pairs
    )
    return (
        f'<!doctype html><meta charset="utf-8"><title>Contact sheet</title><style>{STYLE}</style>'
        f"<h1>Before and after</h1><table>{table}</table>"
        f"<table><tr><th></th><th>Prompt</th><th>Before</th><th>After</th></tr>{rows}</table>\n"
    )


def _tag(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return (
        f'<img alt="" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'
    )
