"""From MODEL_ID to a folder or file on this machine.

A path that exists is used as it is; the built-in names are found beside the installed `demo` package; `s3://` and Hub
ids are downloaded into CACHE_DIR, or into a folder that the caller names.
"""

from __future__ import annotations

import re
from pathlib import Path

from atelier.errors import SourceError
from atelier.settings import Settings
from atelier.sources import local
from atelier.sources.progress import Progress

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(@[\w./-]+)?")


def fetch(settings: Settings, *, into: Path | None = None, progress: Progress | None = None) -> Path:
    """The place of the checkpoint that MODEL_ID names, downloaded first if it is not on this machine.

    Args:
        into: the folder to fill. Without it, downloads go to a folder under CACHE_DIR, and what is on this machine
            already is used where it is.
        progress: told of every piece of a download.

    Raises:
        SourceError: nothing is there, or it could not be fetched; the message names the setting to look at.
    """
    model_id = settings.model_id
    if not model_id:
        raise SourceError("MODEL_ID is empty: set a folder, a .safetensors file, s3://bucket/prefix or a Hub id")
    path = Path(model_id).expanduser()
    if path.exists():
        return local.copy(path, into) if into else path
    if model_id in local.BUILT_IN:
        return local.copy(local.built_in(model_id), into) if into else local.built_in(model_id)
    if model_id.startswith("s3://"):
        from atelier.sources import s3

        return s3.fetch(settings, into=into, progress=progress)
    if path.is_absolute() or model_id.startswith((".", "~")) or not HUB_ID.fullmatch(model_id):
        raise SourceError(f"MODEL_ID={model_id} is not a path on this machine, an s3:// address or a Hub id owner/name")
    from atelier.sources import hub

    return hub.fetch(settings, into=into, progress=progress)
