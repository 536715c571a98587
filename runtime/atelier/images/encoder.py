"""A drawn picture as a file, with the marks that PROVENANCE asks for. Work for a thread: encoding
and signing take milliseconds to a second."""

from __future__ import annotations

from typing import TYPE_CHECKING

from atelier.events import Image, Preview
from atelier.images import codec
from atelier.images.request import ImageRequest
from atelier.provenance.marks import MOST_PROMPT, Ingredient, Marks, xmp_packet
from atelier.settings import Settings

if TYPE_CHECKING:
    from atelier.provenance.manifest import ManifestSigner


class PictureEncoder:
    """Encodes what one server draws; for any thread."""

    def __init__(self, settings: Settings) -> None:
        """
        Raises:
            SettingsError: C2PA_CERTIFICATE or C2PA_KEY cannot be used.
        """
        self._marking = settings.provenance != "off"
        self._with_prompt = settings.provenance_prompt
        self._model = settings.served_name
        self._signer: ManifestSigner | None = None
        if settings.provenance == "c2pa":
            from atelier.provenance.manifest import ManifestSigner

            self._signer = ManifestSigner(settings)

    def encode(self, picture: Image, request: ImageRequest) -> bytes:
        """The picture in the format that its request wants, marked.

        Raises:
            GenerationFailed: it cannot be signed.
        """
        if not self._marking:
            return codec.encode(picture, request.format, request.compression)
        prompt = request.prompt[:MOST_PROMPT] if self._with_prompt else None
        marks = Marks(self._model, picture.seed, bool(request.image), prompt)
        data = codec.encode(picture, request.format, request.compression, xmp_packet(marks))
        if self._signer is None:
            return data
        return self._signer.sign(
            data, codec.MEDIA_TYPES[request.format], marks, ingredients(request)
        )

    def encode_preview(self, preview: Preview, request: ImageRequest) -> bytes:
        """A preview in that format. It is unfinished, and not marked."""
        pixels = Image(0, 0, preview.width, preview.height, 3, preview.pixels)
        return codec.encode(pixels, request.format, request.compression)


def ingredients(request: ImageRequest) -> list[Ingredient]:
    """The pictures that a request is drawn by: first those that it edits, then those of its
    controls and image prompts, but for entries of weight 0, which add nothing."""
    edited = [
        Ingredient(f"input {place}", data) for place, data in enumerate(request.image or (), 1)
    ]
    controls = [
        Ingredient(f"control {one.name}", one.image) for one in request.control or () if one.weight
    ]
    prompts = [
        Ingredient(f"image prompt {one.name}", one.image)
        for one in request.image_prompt or ()
        if one.weight
    ]
    return [*edited, *controls, *prompts]
