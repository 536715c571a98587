"""What the page shows of a board and of endpoints, as HTML. Everything that came from outside is
escaped here."""

from __future__ import annotations

import base64
import secrets
import time
from collections import Counter
from collections.abc import Sequence
from html import escape

from atelier.studio.board import Board, Tile
from atelier.studio.card import ModelCard

EMPTY = '<p class="hint">{}</p>'


def data_url(png: bytes) -> str:
    """A picture inside the page: the studio keeps no file of it."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def hint(text: str) -> str:
    return EMPTY.format(escape(text))


def problem(text: str) -> str:
    """An error, in the words of the API."""
    return f'<p class="problem" role="alert">{escape(text)}</p>'


def progress(board: Board) -> str:
    """One line and a bar: places in the queue, steps, time left."""
    states = [tile.state for tile in board.tiles if tile.state and not tile.ended]
    steps = [(state.step, state.total) for state in states if state.total]
    done = len([tile for tile in board.tiles if tile.ended])
    words = [f"{done} of {len(board.tiles)} pictures"] if len(board.tiles) > 1 else []
    waiting = [state.position for state in states if state.status == "queued" and state.position]
    if waiting:
        words.append(f"{min(waiting)} ahead in the queue")
    elif not steps and done < len(board.tiles):
        words.append("waiting for the device")
    if steps:
        words.append(f"step {min(step for step, _ in steps)} of {steps[0][1]}")
    left = [state.left_s for state in states if state.left_s is not None]
    if left:
        words.append(f"about {max(left):.0f} s left" if max(left) >= 1 else "less than 1 s left")
    part = done + sum(step / total for step, total in steps if total)
    bar = f'<progress max="{len(board.tiles)}" value="{part:.3f}" aria-label="Progress"></progress>'
    return f'<div class="progress" role="status">{bar}<span>{escape(", ".join(words))}</span></div>'


def finished(board: Board) -> str:
    """The line that remains."""
    drawn = len([tile for tile in board.tiles if tile.png])
    took = time.monotonic() - board.began
    pictures = f"{drawn} picture{'' if drawn == 1 else 's'}"
    words = f"{pictures} in {took:.1f} s" if drawn == len(board.tiles) else pictures
    words += ", cancelled" if board.cancelled else ""
    return f'<div class="progress" role="status"><span>{escape(words)}</span></div>'


def tiles(board: Board, ended: bool = False) -> str:
    """All tiles: sketches, problems, room for what is to come, and finished pictures, which come in
    full only when all have `ended`: the page is sent anew several times a second."""
    columns = "one" if len(board.tiles) == 1 else "many"
    inside = "".join(_tile(tile, ended) for tile in board.tiles)
    return f'<div class="tiles {columns}">{inside}</div>'


def _tile(tile: Tile, ended: bool) -> str:
    told = escape(tile.parameters.prompt or "picture", quote=True)
    if tile.png and ended:
        return picture(tile)
    if tile.png:
        return f'<div class="tile"><img src="{data_url(tile.thumb)}" alt="{told}"></div>'
    if tile.problem:
        return f'<div class="tile">{problem(tile.problem)}</div>'
    if tile.sketch:
        source = data_url(tile.sketch)
        step = tile.state.step if tile.state else 0
        return (
            f'<div class="tile sketch"><img src="{source}" alt="Unfinished: {told}"'
            f' data-step="{step}"></div>'
        )
    return '<div class="tile empty" aria-hidden="true"></div>'


def picture(tile: Tile) -> str:
    """A finished picture, with what the page's script needs to keep it."""
    known = tile.parameters
    before = str(tile.extra.get("image", ""))
    return figure(tile.png, known.prompt, known.json_text(), known.caption(), before)


def figure(png: bytes, prompt: str, parameters: str, caption: str, before: str = "") -> str:
    """A picture with its caption and buttons.

    Args:
        parameters: JSON, or empty: a contact sheet, which nothing draws again.
        before: of an edit, the picture that it began with, as a data URL.
    """
    buttons = '<button type="button" data-do="download">Download</button>'
    if parameters:
        buttons += '<button type="button" data-do="edit">Edit</button>'
        buttons += '<button type="button" data-do="again">Again with these</button>'
    shown = f'<img src="{data_url(png)}" alt="{escape(prompt or "picture", quote=True)}">'
    # The page is rendered anew now and then; by its id, a picture is kept once.
    return (
        f'<figure class="tile picture" data-drawn="{secrets.token_hex(8)}"'
        f' data-parameters="{escape(parameters, quote=True)}"'
        f' data-caption="{escape(caption, quote=True)}">'
        f"{_compared(shown, before) if before else shown}"
        f'<figcaption>{escape(caption)}</figcaption><div class="actions">{buttons}</div></figure>'
    )


def _compared(after: str, before: str) -> str:
    """A picture with that before it on its left part, as far as a slider says."""
    return (
        f'<div class="compare">{after}'
        f'<img class="before" src="{escape(before, quote=True)}" alt="Before"></div>'
        '<input class="slider" type="range" min="0" max="100" value="50"'
        ' aria-label="Before and after">'
    )


def folded(title: str, text: str) -> str:
    """Text behind its title, closed at first."""
    return f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>"


def tally(cards: Sequence[ModelCard]) -> str:
    """How many endpoints are in which state, for the title above them."""
    states = Counter(card.state for card in cards)
    return "Endpoints: " + ", ".join(f"{count} {state}" for state, count in states.items())


def endpoints(cards: Sequence[ModelCard]) -> str:
    """Every endpoint with its state."""
    rows = []
    for card in cards:
        told = card.problem or card.kind
        rows.append(
            f'<li class="{card.state}"><b>{escape(card.label)}</b>'
            f' <span class="state">{card.state}</span> <span>{escape(told)}</span></li>'
        )
    return f'<ul class="endpoints">{"".join(rows)}</ul>'
