"""Where adapters of LORA_PATHS, CONTROLNETS, IP_ADAPTERS and EMBEDDINGS lie: the same kinds of
source as MODEL_ID, found and fetched by the same code."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from atelier.errors import SettingsError, SourceError
from atelier.settings import Settings
from atelier.sources.source import fetch, file_names, on_this_machine

LORA_FILE = "pytorch_lora_weights.safetensors"
NAMED_BY_FOLDER = (LORA_FILE, "adapter_model.safetensors")
"""What diffusers and PEFT call every adapter, so that its folder has to name it."""

NAMED = re.compile(r"([A-Za-z0-9][\w.-]*)=(.+)")
"""An entry that says what it is called. Names have no slash, so an address with = in it has none.
"""


@dataclass(frozen=True)
class AdapterSource:
    """One entry: as it is written, its address without a revision, and its folder or file on this
    machine.

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
    return [_fetch(settings, "LORA_PATHS", entry) for entry in settings.lora_paths]


def fetch_named(
    settings: Settings, variable: str, entries: Sequence[str], here: bool = False
) -> dict[str, Path]:
    """The entries of CONTROLNETS, IP_ADAPTERS or EMBEDDINGS by name, downloaded first if need be;
    with `here`, only those that are on this machine already.

    Raises:
        SourceError: as `fetch_adapters`.
        SettingsError: two have one name.
    """
    found: dict[str, Path] = {}
    for entry in entries:
        match = NAMED.fullmatch(entry)
        address = match[2] if match else entry
        if here and on_this_machine(_as_model(settings, address)) is None:
            continue
        source = _fetch(settings, variable, address)
        name = match[1] if match else source.name
        if name in found:
            raise SettingsError(
                f"{variable} has two of the name {name}: write name=source, with names of their own"
            )
        found[name] = source.path
    return found


def remote_file_names(settings: Settings, entry: str) -> list[str] | None:
    """The files that an entry of LORA_PATHS would bring, without downloading any; None if it is on
    this machine.

    Raises:
        SourceError: as `fetch_adapters`.
    """
    wanted = _as_model(settings, entry)
    with _naming("LORA_PATHS", entry):
        return None if on_this_machine(wanted) else file_names(wanted)


def local_source(settings: Settings, entry: str) -> AdapterSource:
    """An entry of LORA_PATHS that is on this machine.

    Raises:
        SourceError: as `fetch_adapters`.
    """
    return _fetch(settings, "LORA_PATHS", entry)


def _fetch(settings: Settings, variable: str, entry: str) -> AdapterSource:
    wanted = _as_model(settings, entry)
    with _naming(variable, entry):
        here = on_this_machine(wanted)
        address = here.absolute().as_posix() if here else entry.partition("@")[0]
        return AdapterSource(entry, PurePosixPath(address), here or fetch(wanted))


def _as_model(settings: Settings, entry: str) -> Settings:
    return settings.model_copy(update={"model_id": entry, "variant": ""})


@contextmanager
def _naming(variable: str, entry: str) -> Iterator[None]:
    """Sources speak of MODEL_ID, since that is what they mostly fetch: their advice is as true of
    the other variables."""
    try:
        yield
    except SourceError as error:
        message = error.message.replace("MODEL_ID", variable)
        raise SourceError(
            message if f"{variable}=" in message else f"{variable}={entry}: {message}"
        ) from error
