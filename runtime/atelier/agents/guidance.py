"""What the server offers beside tools: recent pictures as resources, and prompts that help an
assistant to write for a picture model."""

from __future__ import annotations

import asyncio

from fastmcp import FastMCP
from fastmcp.exceptions import ResourceError
from fastmcp.resources import ResourceContent, ResourceResult

from atelier.agents.answers import timestamp
from atelier.agents.callers import RecentPictures
from atelier.agents.links import SCHEME, PictureLinks
from atelier.agents.store import PictureStore
from atelier.errors import AtelierError, NotFound

INSTRUCTIONS = """Draws and changes pictures. generate_image draws from a text, edit_image redraws a
picture, get_image shows one again. Every answer has each picture's seed: keep it to draw the same
picture with one thing changed. describe_model tells which sizes and adapters the model takes, which
controls put things where another picture has them, and which upscalers make pictures larger."""

DRAFT = """Write a prompt for a text-to-image model and call generate_image with it.

The wish: {wish}
Style: {style}

One or two sentences in plain words. Name the subject first, then what it does, where it is, the
light, the point of view and the style. Say how many things there are and where they stand to each
other. Leave out orders ("draw", "make") and what cannot be seen. What must not be there goes into
negative_prompt. Then look at the picture and say in a sentence how well it meets the wish."""

CHANGE = """Change the picture {image} with edit_image.

The change: {change}

Look at the picture with get_image first. The prompt describes the whole wanted picture, with
everything that stays. Where only a part may change, send a mask: a PNG as large as the picture,
transparent there. Without a mask keep strength low (0.3 to 0.5) for small changes, high (0.7 to
0.9) for large ones."""

SERIES = """Draw {count} pictures of one subject that go together, with generate_image.

The subject: {subject}

Write one prompt with everything that is common and a word or two that differ. Use the same seed,
size and steps in all calls and change nothing else, so that only those words make the
difference. Then compare the pictures."""


def add_prompts(server: FastMCP) -> None:
    """Add the prompts."""

    @server.prompt
    def write_picture_prompt(wish: str, style: str = "as it fits") -> str:
        """Turn a wish into a prompt that a picture model follows, and draw it.

        Args:
            wish: What the user wants to see, in their words.
            style: Photograph, watercolour, isometric, ...
        """
        return DRAFT.format(wish=wish, style=style)

    @server.prompt
    def change_picture(image: str, change: str) -> str:
        """Change a picture and keep the rest of it.

        Args:
            image: Its name, resource URI or URL.
            change: What should be different.
        """
        return CHANGE.format(image=image, change=change)

    @server.prompt
    def draw_series(subject: str, count: str = "4") -> str:
        """Draw several pictures that differ in one thing only.

        Args:
            subject: What all pictures show.
            count: How many.
        """
        return SERIES.format(subject=subject, count=count)


def add_resources(
    server: FastMCP, store: PictureStore, links: PictureLinks, recent: RecentPictures
) -> None:
    """Add the list of recent pictures, and each picture under its own URI."""

    @server.resource(
        SCHEME.rstrip("/"),
        name="recent_pictures",
        mime_type="application/json",
        description="The pictures drawn last for you, newest first: name, url, uri, expiry.",
    )
    async def recent_pictures() -> ResourceResult:
        return ResourceResult([ResourceContent(await asyncio.to_thread(_listed, recent.names()))])

    @server.resource(
        SCHEME + "{name}",
        name="picture",
        mime_type="image/*",
        description="A picture by the name that its answer told.",
    )
    async def picture(name: str) -> ResourceResult:
        try:
            found = await asyncio.to_thread(store.find, name)
            data = await asyncio.to_thread(store.read, found)
        except AtelierError as error:
            raise ResourceError(error.message) from None
        return ResourceResult([ResourceContent(data, mime_type=found.media_type)])

    def _listed(names: list[str]) -> list[dict[str, str]]:
        entries = []
        for name in names:
            try:
                found = store.find(name)
            except NotFound:
                continue
            entries.append(
                {
                    "name": name,
                    "url": links.url(found),
                    "uri": links.uri(found),
                    "media_type": found.media_type,
                    "expires_at": timestamp(store.expires(found)).isoformat(),
                }
            )
        return entries
