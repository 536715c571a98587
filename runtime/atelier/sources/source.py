"""From MODEL_ID to a folder or file on this machine.

A path that exists is used as it is; the built-in models lie in the package; `s3://` and Hub
ids are downloaded into CACHE_DIR, or into a folder that the caller names.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from atelier.errors import SourceError
from atelier.settings import Settings
from atelier.sources import local
from atelier.sources.progress import Progress

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(@[\w./-]+)?")


def fetch(
    settings: Settings, *, into: Path | None = None, progress: Progress | None = None
) -> Path:
    """The place of the checkpoint that MODEL_ID names, downloaded first if it is not on this
    machine.

    Args:
        into: the folder to fill. Without it, downloads go to a folder under CACHE_DIR, and what is
            on this machine already is used where it is.
        progress: told of every piece of a download.

    Raises:
        SourceError: nothing is there, or it could not be fetched; the message names the setting to
            look at.
    """
    found = on_this_machine(settings)
    if found:
        return local.copy(found, into) if into else found
    return _store(settings.model_id).fetch(settings, into=into, progress=progress)


def fetch_draft(settings: Settings) -> Path:
    """The place of the checkpoint that DRAFT_MODEL_ID names, as `fetch` finds MODEL_ID's.

    Raises:
        SourceError: as `fetch`; the message names DRAFT_MODEL_ID.
    """
    wanted = settings.model_copy(update={"model_id": settings.draft_model_id, "variant": ""})
    try:
        return fetch(wanted)
    except SourceError as error:
        raise SourceError(error.message.replace("MODEL_ID", "DRAFT_MODEL_ID")) from error


def file_names(settings: Settings) -> list[str]:
    """The files that MODEL_ID names, as paths below it, without downloading any: what a checkpoint
    is shows in them.

    Raises:
        SourceError: as `fetch`.
    """
    found = on_this_machine(settings)
    if found:
        return [found.name] if found.is_file() else [one.name for one in found.iterdir()]
    return list(_store(settings.model_id).file_names(settings))


def on_this_machine(settings: Settings) -> Path | None:
    """The path or built-in model that MODEL_ID names; None if it names something to download.

    Raises:
        SourceError: MODEL_ID is empty, or a built-in model that is not installed.
    """
    if not settings.model_id:
        raise SourceError(
            "MODEL_ID is empty: set a folder, a .safetensors file, s3://bucket/prefix or a Hub id"
        )
    path = Path(settings.model_id).expanduser()
    if path.exists():
        return path.absolute()  # engines beside the server run in folders of their own
    return local.built_in(settings.model_id)


def _store(model_id: str) -> Any:
    """The module that downloads what MODEL_ID names."""
    if model_id.startswith("s3://"):
        from atelier.sources import s3

        return s3
    if (
        Path(model_id).is_absolute()
        or model_id.startswith((".", "~"))
        or not HUB_ID.fullmatch(model_id)
    ):
        raise SourceError(
            f"MODEL_ID={model_id} is not a path on this machine, an s3:// address or a Hub id"
            " owner/name"
        )
    from atelier.sources import hub

    return hub
