"""A contact sheet as one picture: the tiles in a grid, the values along two sides, and above them
what they mean."""

from __future__ import annotations

import io
import textwrap

from PIL import Image, ImageDraw, ImageFont

from atelier.studio.axes import SheetAxis
from atelier.studio.board import Tile

PAPER, INK, SOFT = "#ffffff", "#18181b", "#52525b"
GAP = 12
MOST_SIDE = 512
"""Longest side of a tile on the sheet, in pixels; the pictures themselves are kept at full size."""


def contact_sheet(title: str, rows: SheetAxis, columns: SheetAxis, tiles: list[Tile]) -> bytes:
    """The sheet as PNG. A tile without a picture is an empty frame with its problem.

    Args:
        tiles: row by row, as `axes.tiles` makes them.
    """
    pictures = [Image.open(io.BytesIO(tile.png)) if tile.png else None for tile in tiles]
    known = [picture.size for picture in pictures if picture]
    width, height = max(known, default=(256, 256))
    shrink = min(1.0, MOST_SIDE / max(width, height))
    cell = (max(96, round(width * shrink)), max(96, round(height * shrink)))
    font = ImageFont.load_default(max(13, cell[0] // 16))
    line = round(font.getbbox("Ag")[3] * 1.2)
    left = _margin(font, rows)
    head = textwrap.wrap(title, max(24, (left + len(columns.values) * cell[0]) // (line // 2)))
    top = GAP + line * min(3, len(head)) + (2 * line + GAP if columns.label else 0) + GAP
    size = (
        left + len(columns.values) * (cell[0] + GAP) + GAP,
        top + len(rows.values) * (cell[1] + GAP),
    )
    sheet = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(sheet)
    for index, text in enumerate(head[:3]):
        pen.text((GAP, GAP + index * line), text, INK, font)
    _columns(pen, font, columns, (left, top - 2 * line - GAP // 2), cell[0])
    if rows.label:
        pen.text((GAP, top - line - GAP // 2), rows.label, SOFT, font)
    for index, (tile, picture) in enumerate(zip(tiles, pictures, strict=True)):
        row, column = divmod(index, len(columns.values))
        corner = (left + column * (cell[0] + GAP), top + row * (cell[1] + GAP))
        if column == 0 and rows.label:
            pen.text((GAP, corner[1] + cell[1] / 2), rows.values[row][0], INK, font, "lm")
        if picture:
            sheet.paste(picture.convert("RGB").resize(cell), corner)
            continue
        pen.rectangle((*corner, corner[0] + cell[0], corner[1] + cell[1]), outline=SOFT)
        problem = "\n".join(textwrap.wrap(tile.problem, max(8, cell[0] // (line // 2)))[:6])
        pen.multiline_text((corner[0] + 6, corner[1] + 6), problem, SOFT, font)
    out = io.BytesIO()
    sheet.save(out, "PNG", compress_level=1)
    return out.getvalue()


def _margin(font: ImageFont.ImageFont | ImageFont.FreeTypeFont, rows: SheetAxis) -> int:
    """Room on the left for what the rows are."""
    if not rows.label:
        return GAP
    words = [rows.label, *(word for word, _ in rows.values)]
    return round(max(font.getlength(word) for word in words)) + 2 * GAP


def _columns(
    pen: ImageDraw.ImageDraw,
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
    columns: SheetAxis,
    corner: tuple[int, int],
    width: int,
) -> None:
    if not columns.label:
        return
    line = font.getbbox("Ag")[3]
    pen.text(corner, columns.label, SOFT, font)
    for index, (word, _) in enumerate(columns.values):
        middle = corner[0] + index * (width + GAP) + width / 2
        while font.getlength(word) > width and len(word) > 4:
            word = f"{word[:-3]}…"  # the last may be the ellipsis of the turn before
        pen.text((middle, corner[1] + line + GAP // 2), word, INK, font, "ma")
