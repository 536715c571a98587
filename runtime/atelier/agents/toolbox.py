"""The tools of the MCP server: what assistants call, with words that they understand."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, ParamSpec, TypeVar

from fastmcp import Context, FastMCP
from fastmcp.exceptions import ToolError
from fastmcp.tools.base import ToolResult
from mcp.types import ContentBlock, TextContent, ToolAnnotations
from pydantic import BaseModel

from atelier.agents.answers import (
    DrawingAnswer,
    ListedModel,
    MeasuredPicture,
    ModelAnswer,
    ModelsAnswer,
    PictureAnswer,
    timestamp,
)
from atelier.agents.callers import RecentPictures, while_wanted
from atelier.agents.endpoint import DrawnPictures, FinishedPicture, PictureEndpoint
from atelier.agents.job_events import JobState
from atelier.agents.links import InputPictures, PictureLinks
from atelier.agents.parameters import (
    Adapters,
    Controls,
    Count,
    FileFormat,
    Guidance,
    GuidePicture,
    ImagePrompts,
    Mask,
    Model,
    Negative,
    Prompt,
    Reference,
    Seed,
    Size,
    Steps,
    Strength,
    Times,
    Upscaler,
    drawing_fields,
)
from atelier.agents.store import PictureStore, StoredPicture
from atelier.errors import AtelierError, ModelUnknown, NotFound, StoreFailed
from atelier.settings import Settings

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

READS = ToolAnnotations(read_only_hint=True, idempotent_hint=True, open_world_hint=False)
DRAWS = ToolAnnotations(
    read_only_hint=False, destructive_hint=False, idempotent_hint=True, open_world_hint=True
)
"""A drawing adds a picture to the store and changes nothing else; with its seed it is the same."""


def worded(
    tool: Callable[Parameters, Awaitable[Result]],
) -> Callable[Parameters, Awaitable[Result]]:
    """Our errors as the tool's, in the same words; no traceback goes to an assistant."""

    @functools.wraps(tool)
    async def call(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        try:
            return await tool(*args, **kwargs)
        except AtelierError as error:
            raise ToolError(error.message, log_level=logging.INFO) from None

    return call


class Toolbox:
    """The tools over one endpoint and one store."""

    def __init__(
        self,
        settings: Settings,
        endpoint: PictureEndpoint,
        store: PictureStore,
        links: PictureLinks,
    ) -> None:
        self._settings = settings
        self._endpoint = endpoint
        self._store = store
        self._links = links
        self._inputs = InputPictures(settings, store, links, endpoint)
        self.recent = RecentPictures(settings)

    def register(self, server: FastMCP) -> None:
        """Add every tool to the server."""
        for tool, title, hints, answer in (
            (self.generate_image, "Draw a picture", DRAWS, DrawingAnswer),
            (self.edit_image, "Change a picture", DRAWS, DrawingAnswer),
            (self.get_image, "Look at a picture", READS, PictureAnswer),
            (self.list_models, "List the models", READS, ModelsAnswer),
            (self.describe_model, "Describe a model", READS, ModelAnswer),
        ):
            server.tool(
                worded(tool),
                title=title,
                annotations=hints.model_copy(update={"title": title}),
                output_schema=answer.model_json_schema(mode="serialization"),
            )

    async def generate_image(
        self,
        ctx: Context,
        prompt: Prompt,
        negative_prompt: Negative = None,
        model: Model = None,
        size: Size = None,
        steps: Steps = None,
        guidance_scale: Guidance = None,
        seed: Seed = None,
        count: Count = 1,
        adapters: Adapters = None,
        control: Controls = None,
        image_prompt: ImagePrompts = None,
        upscale: Times = None,
        upscaler: Upscaler = None,
        file_format: FileFormat = "png",
    ) -> ToolResult:
        """Draw one or several pictures from a text. Answers with the pictures, their URLs and the
        seeds that draw them again. Ask describe_model for sizes, adapters, controls and upscalers
        first if they matter."""
        fields = drawing_fields(
            prompt, negative_prompt, model, size, steps, guidance_scale, seed, count, adapters,
            file_format, control=await self._guides(control, "control"), upscale=upscale,
            image_prompt=await self._guides(image_prompt, "image_prompt"), upscaler=upscaler,
        )  # fmt: skip
        return await self._drawn(self._endpoint.generate(fields, _progress(ctx)))

    async def edit_image(
        self,
        ctx: Context,
        image: Reference,
        prompt: Prompt,
        mask: Mask = None,
        strength: Strength = None,
        negative_prompt: Negative = None,
        model: Model = None,
        size: Size = None,
        steps: Steps = None,
        guidance_scale: Guidance = None,
        seed: Seed = None,
        count: Count = 1,
        adapters: Adapters = None,
        file_format: FileFormat = "png",
    ) -> ToolResult:
        """Redraw a picture as a text says; with a mask, only where the mask is transparent. The
        prompt describes the whole wanted picture, not the change alone."""
        pictures = {"image": await self._inputs.read(image, "image")}
        if mask is not None:
            pictures["mask"] = await self._inputs.read(mask, "mask")
        fields = drawing_fields(
            prompt, negative_prompt, model, size, steps, guidance_scale, seed, count, adapters,
            file_format, strength=strength,
        )  # fmt: skip
        return await self._drawn(self._endpoint.edit(fields, pictures, _progress(ctx)))

    async def get_image(self, image: Reference) -> ToolResult:
        """Look at a picture that was drawn earlier, by its name, resource URI or URL."""
        found = await asyncio.to_thread(self._links.find, image.strip())
        if found is None:
            raise NotFound(
                f"image: {image[:100]!r} is no picture of this server; send a name, a URI or a URL"
                " from an answer of generate_image or edit_image"
            )
        data = await asyncio.to_thread(self._store.read, found)
        answer, content = await asyncio.to_thread(
            self._answer, FinishedPicture(data), found, self._settings.mcp_inline_bytes
        )
        return _result(answer, [content])

    async def list_models(self) -> ToolResult:
        """List the models of the endpoint, and whether they are ready to draw."""
        models = [
            ListedModel(
                name=str(entry["id"]),
                owned_by=str(entry.get("owned_by", "")),
                ready=await self._endpoint.ready(entry["id"]) if _is_ours(entry) else None,
            )
            for entry in await self._endpoint.models()
        ]
        return _result(ModelsAnswer(endpoint=self._endpoint.base, models=models))

    async def describe_model(self, model: Model = None) -> ToolResult:
        """Say what a model takes: its size, the multiple that sizes must be of, its steps, its
        adapters, the controls and image prompts that it draws by, its upscalers."""
        entries = await self._endpoint.models()
        entry = next((one for one in entries if model in (None, one["id"])), None)
        if entry is None:
            names = ", ".join(str(one["id"]) for one in entries) or "none"
            raise ModelUnknown(f"model: there is no {model!r} at {self._endpoint.base}: {names}")
        name = str(entry["id"])
        ready = await self._endpoint.ready(name) if _is_ours(entry) else None
        metadata = await self._endpoint.metadata(name) if _is_ours(entry) else {}
        return _result(_described(name, ready, metadata))

    async def _guides(
        self, entries: Sequence[GuidePicture] | None, where: str
    ) -> list[dict[str, Any]] | None:
        """Pictures to draw by as a request has them."""
        if entries is None:
            return None
        return [
            entry.fields(await self._inputs.read(entry.image, f"{where}.{place}.image"))
            for place, entry in enumerate(entries)
        ]

    async def _drawn(self, drawing: Awaitable[DrawnPictures]) -> ToolResult:
        drawn = await while_wanted(drawing)
        share = self._settings.mcp_inline_bytes // len(drawn.pictures)
        answer = DrawingAnswer(pictures=[], warnings=list(drawn.warnings))
        contents: list[ContentBlock] = []
        for picture in drawn.pictures:
            kept = await self._keep(picture, answer.warnings)
            told, content = await asyncio.to_thread(self._answer, picture, kept, share)
            answer.pictures.append(told)
            contents.append(content)
        return _result(answer, contents)

    async def _keep(self, picture: FinishedPicture, warnings: list[str]) -> StoredPicture | None:
        """Put it into the store. One that cannot be kept is drawn all the same, and shown."""
        kind = (await asyncio.to_thread(MeasuredPicture, picture.data)).kind
        try:
            kept = await asyncio.to_thread(self._store.put, picture.data, kind)
        except StoreFailed as error:
            warnings.append(f"the picture is not kept and has no URL: {error.message}")
            return None
        self.recent.add(kept.name)
        return kept

    def _answer(
        self, picture: FinishedPicture, kept: StoredPicture | None, most_bytes: int
    ) -> tuple[PictureAnswer, ContentBlock]:
        measured = MeasuredPicture(picture.data)
        content, shown = measured.content(most_bytes)
        answer = PictureAnswer(
            name=kept.name if kept else None,
            url=self._links.url(kept) if kept else None,
            uri=self._links.uri(kept) if kept else None,
            media_type=measured.media_type,
            width=measured.width,
            height=measured.height,
            size_bytes=len(picture.data),
            seed=picture.seed,
            expires_at=timestamp(self._store.expires(kept)) if kept else None,
            shown=shown,
        )
        return answer, content


def _is_ours(entry: dict[str, Any]) -> bool:
    return entry.get("owned_by") == "atelier"


def _described(name: str, ready: bool | None, metadata: dict[str, Any]) -> ModelAnswer:
    size = metadata.get("native_size")
    return ModelAnswer(
        name=name,
        ready=ready,
        pipeline=metadata.get("pipeline"),
        default_size=f"{size[0]}x{size[1]}" if size else None,
        size_multiple=metadata.get("size_multiple"),
        max_pixels=(metadata.get("memory_plan") or {}).get("max_pixels"),
        default_steps=metadata.get("default_steps"),
        adapters=metadata.get("adapters"),
        controls=metadata.get("controls"),
        image_prompts=metadata.get("image_prompts"),
        upscalers=metadata.get("upscalers"),
        arguments=metadata.get("arguments"),
    )


def _progress(ctx: Context) -> Callable[[JobState], Awaitable[None]]:
    """Tells the client each step once; the numbers only grow, as the protocol wants."""
    told = -1

    async def watch(state: JobState) -> None:
        nonlocal told
        if state.step <= told or state.ended:
            return
        told = state.step
        place = f"queued, place {state.position}" if state.position else "queued"
        message = place if state.status == "queued" else f"step {state.step}"
        await ctx.report_progress(state.step, state.total, message)

    return watch


def _result(answer: BaseModel, contents: list[ContentBlock] | None = None) -> ToolResult:
    """Structured, the same as text for clients that read no structure, and the pictures."""
    text = TextContent(type="text", text=answer.model_dump_json(exclude_none=True))
    return ToolResult(
        content=[text, *(contents or [])], structured_content=answer.model_dump(mode="json")
    )
