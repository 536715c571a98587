"""What the chat shows, as HTML: Markdown of the model is rendered here, with no HTML of its own and
no pictures from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markdown_it.utils import EnvType, OptionsDict

from atelier.studio import views
from atelier.studio.conversation import ChatAnswer


def _link(
    renderer: RendererHTML, tokens: Sequence[Token], index: int, options: OptionsDict, _: EnvType
) -> str:
    """A link opens beside the page, which would forget the chat."""
    tokens[index].attrs |= {"target": "_blank", "rel": "noopener noreferrer"}
    return renderer.renderToken(tokens, index, options, {})


# An image's address would be asked from the reader's browser, with whatever the model put in it.
MARKDOWN = MarkdownIt("js-default").disable("image")
MARKDOWN.add_render_rule("link_open", _link)


def asked(text: str) -> str:
    """A message of the person, as it was written."""
    return f'<div class="said asked">{escape(text)}</div>'


def shown(html: str) -> str:
    """A picture, a problem or another part of an answer."""
    return f'<div class="said">{html}</div>'


def answer(so_far: ChatAnswer, ended: bool) -> str:
    """Reasoning folded away, then the text, then what is called."""
    parts = []
    if so_far.reasoning:
        title = "Reasoning" if ended or so_far.text else "Reasoning, going on"
        parts.append(views.folded(title, so_far.reasoning))
    if so_far.text:
        parts.append(MARKDOWN.render(so_far.text))
    parts += [views.folded(f"Tool: {call.name}", call.arguments) for call in so_far.calls]
    return "".join(map(shown, parts))
