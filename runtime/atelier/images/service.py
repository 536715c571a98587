"""What protocols ask of a picture model, whether it runs in this process or in workers."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol

from atelier.images.request import ImageRequest
from atelier.streams import EventStream


class PictureService(Protocol):
    """`ImageModel` and `workers.image_front.ImageFront` are two."""

    name: str

    @property
    def ready(self) -> bool:
        """Whether a request would be served now."""

    @property
    def progress(self) -> str:
        """What the start is doing."""

    @property
    def default_steps(self) -> int | None:
        """The pipeline's own number of steps; None if it has no such argument."""

    @property
    def gives_alpha(self) -> bool:
        """True if pictures have four channels."""

    async def submit(self, request: ImageRequest, protocol: str = "") -> EventStream:
        """Have a request admitted; its events follow."""

    def refusals(self, protocol: str) -> AbstractContextManager[None]:
        """Count an error raised inside as a request that was not admitted."""

    def check_ready(self) -> None:
        """Raise NotReady unless requests can be served."""

    def check_room(self) -> None:
        """Raise Busy or NotReady unless one request more can be taken; for before its pictures are
        decoded."""

    def metadata(self) -> dict[str, Any]:
        """What the model's metadata endpoint adds."""
