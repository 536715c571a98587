"""Where the adapters of LORA_PATHS lie: the same kinds of source as MODEL_ID, found and fetched by
the same code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from atelier.errors import SourceError
from atelier.settings import Settings
from atelier.sources.source import fetch, file_names, on_this_machine

LORA_FILE = "pytorch_lora_weights.safetensors"
NAMED_BY_FOLDER = (LORA_FILE, "adapter_model.safetensors")
"""What diffusers and PEFT call every adapter, so that its folder has to name it."""


@dataclass(frozen=True)
class AdapterSource:
    """One entry of LORA_PATHS: as it is written, its address without a revision, and its folder or
    file on this machine.

    Adapters are named after the address: the folder of a download has a name of its own.
    """

    entry: str
    address: PurePosixPath
    path: Path

    @property
    def name(self) -> str:
        """Name of the entry as a whole."""
        return self.address.stem if self.path.is_file() else self.address.name

    def name_of(self, file: Path) -> str:
        """Name of the adapter in `file`: the file's stem, or its folder's name if all adapters'
        files are called so."""
        place = (
            self.address
            if file == self.path
            else self.address / file.relative_to(self.path).as_posix()
        )
        return place.parent.name if place.name in NAMED_BY_FOLDER else place.stem


def fetch_adapters(settings: Settings) -> list[AdapterSource]:
    """Every entry of LORA_PATHS, downloaded first if it is not on this machine.

    Raises:
        SourceError: nothing is there, or it could not be fetched; the message names the entry.
    """
    return [_fetch(settings, entry) for entry in settings.lora_paths]


def remote_file_names(settings: Settings, entry: str) -> list[str] | None:
    """The files that an entry of LORA_PATHS would bring, without downloading any; None if it is on
    this machine.

    Raises:
        SourceError: as `fetch_adapters`.
    """
    wanted = _as_model(settings, entry)
    with _naming(entry):
        return None if on_this_machine(wanted) else file_names(wanted)


def _fetch(settings: Settings, entry: str) -> AdapterSource:
    wanted = _as_model(settings, entry)
    with _naming(entry):
        here = on_this_machine(wanted)
        address = here.absolute().as_posix() if here else entry.partition("@")[0]
        return AdapterSource(entry, PurePosixPath(address), here or fetch(wanted))


def _as_model(settings: Settings, entry: str) -> Settings:
    return settings.model_copy(update={"model_id": entry, "variant": ""})


@contextmanager
def _naming(entry: str) -> Iterator[None]:
    """Sources speak of MODEL_ID, since that is what they mostly fetch: their advice is as true of
    LORA_PATHS."""
    try:
        yield
    except SourceError as error:
        message = error.message.replace("MODEL_ID", "LORA_PATHS")
        raise SourceError(
            message if "LORA_PATHS=" in message else f"LORA_PATHS={entry}: {message}"
        ) from error
