"""LoRA adapters by name: found in what LORA_PATHS brought, loaded on first use, the least recently
used ones dropped.

Adapters live in the shared modules, so only the denoising thread loads and switches them, between
two module calls.
"""

from __future__ import annotations

import contextlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from atelier.errors import CheckpointError, InvalidRequest, SettingsError, shown
from atelier.images.adapter_files import by_layers, fault_of, look_into
from atelier.images.adapter_layers import AdapterLayers
from atelier.images.peft_loading import in_diffusers_names, load_by_peft, without_products
from atelier.sources.adapters import NAMED_BY_FOLDER, AdapterSource
from atelier.sources.checkpoint.contents import PICKLES
from atelier.sources.checkpoint.listing import entries, is_safetensors, safetensors_in

log = logging.getLogger(__name__)

Selection = tuple[tuple[str, float], ...]
"""(name, weight) pairs in the order of names."""


class Adaptation(NamedTuple):
    """What the shared modules are changed by for a request."""

    loras: Selection = ()
    image_prompts: Selection = ()


PLAIN = Adaptation()
"""By nothing."""


class Adapters:
    """The adapters of one model. `select` may be called from any thread, `use` only from the
    denoising one.

    Raises:
        CheckpointError: LORA_PATHS names what is no adapter; see `discover`.
        SettingsError: DEFAULT_LORA names one that is not there.
    """

    def __init__(
        self,
        pipeline: Any,
        sources: Sequence[AdapterSource],
        default: Mapping[str, float],
        keep: int,
    ) -> None:
        self._pipeline = pipeline
        found = discover(sources)
        self._faults = {
            name: f"{path.name}: {fault}"
            for name, path in found.items()
            if (fault := fault_of(path, pipeline))
        }
        for fault in self._faults.values():
            log.warning("LORA_PATHS: %s", fault)
        self._files = {name: path for name, path in found.items() if name not in self._faults}
        looks = {name: look_into(path) for name, path in self._files.items()}
        for name, look in looks.items():
            log.info("LORA_PATHS: %s is a %s", name, look)
        # Their layers are found now, while the modules have the names of the checkpoint.
        self._layers = {
            name: AdapterLayers.of(self._files[name], pipeline)
            for name, look in looks.items()
            if by_layers(look, pipeline)
        }
        # PEFT keeps adapters in a ModuleDict, whose keys may not hold dots nor be its attributes'.
        self._keys = {name: f"adapter_{index}" for index, name in enumerate(self.names)}
        self._keep = keep
        self._loaded: OrderedDict[str, None] = OrderedDict()
        self.when_dropped: Callable[[str], None] = lambda name: None
        self._active: Selection | None = ()  # None: unknown, after a change that failed half-way
        self._default = default
        try:
            self.select(None)
        except InvalidRequest as error:
            raise SettingsError(f"DEFAULT_LORA={','.join(default)} is not valid: {error}") from None

    @property
    def names(self) -> list[str]:
        """Adapters that a request can name."""
        return sorted(self._files)

    def select(self, wanted: Mapping[str, float] | None) -> Selection:
        """Check the names of a request; None stands for DEFAULT_LORA.

        Raises:
            InvalidRequest: a name that is not in the folders, a file that is no adapter for this
                model, or adapters for a pipeline that takes none.
        """
        chosen = self._default if wanted is None else wanted
        for name in chosen:
            if name in self._faults:
                raise InvalidRequest(f"lora: {name} cannot be used: {self._faults[name]}", "lora")
            if name not in self._files:
                raise InvalidRequest(
                    f"lora: {shown(name)} is not here; available:"
                    f" {', '.join(self.names) or 'none'}",
                    "lora",
                )
        if chosen and not hasattr(self._pipeline, "load_lora_weights"):
            raise InvalidRequest(f"lora: {type(self._pipeline).__name__} takes no adapters", "lora")
        if len(chosen) > self._keep:
            raise InvalidRequest(
                f"lora: {len(chosen)} adapters are above MAX_LORAS={self._keep}", "lora"
            )
        return tuple(sorted((name, float(weight)) for name, weight in chosen.items()))

    @property
    def active(self) -> Selection:
        """Those that are active, by PEFT's names for them."""
        return tuple((self._keys[name], weight) for name, weight in self._active or ())

    def use(self, selection: Selection) -> None:
        """Make exactly these adapters active.

        Raises:
            InvalidRequest: the file does not fit the model.
        """
        if selection == self._active:
            return
        self._active = None
        for name, _ in selection:
            self._load(name)
        if selection:
            self._pipeline.enable_lora()
            self._pipeline.set_adapters(
                [self._keys[name] for name, _ in selection], [weight for _, weight in selection]
            )
        elif self._loaded:
            self._pipeline.disable_lora()
        self._active = selection
        self._drop_unused({name for name, _ in selection})

    def _load(self, name: str) -> None:
        if name not in self._loaded:
            path = self._files[name]
            try:
                self._read(name, path)
            except Exception as error:
                with contextlib.suppress(
                    ValueError, KeyError, AttributeError
                ):  # whatever came in before the fault
                    self._pipeline.delete_adapters(self._keys[name])
                raise InvalidRequest(
                    f"lora: {name} cannot be loaded into this model: {path.name}: {error}", "lora"
                ) from error
            log.info("adapter %s loaded from %s", name, path)
        self._loaded[name] = None
        self._loaded.move_to_end(name)

    def _read(self, name: str, path: Path) -> None:
        key, layers = self._keys[name], self._layers.get(name)
        if layers and (layers.kind != "LoRA" or layers.layout == "PEFT"):
            load_by_peft(self._pipeline, layers, key)
        else:
            source: Any = in_diffusers_names(layers) if layers else path.parent
            place = {} if layers else {"weight_name": path.name}
            if not layers and path.suffix != ".safetensors":  # diffusers takes it for a pickle
                from safetensors.torch import load_file

                source, place = load_file(path), {}
            with without_products(self._pipeline):
                self._pipeline.load_lora_weights(source, adapter_name=key, **place)
        held = self._pipeline.get_list_adapters().values()
        if not any(key in keys for keys in held):
            kind = type(self._pipeline).__name__
            raise CheckpointError(f"none of its layers is one of {kind}; diffusers took nothing")

    def _drop_unused(self, active: set[str]) -> None:
        for name in list(self._loaded):
            if len(self._loaded) <= self._keep:
                return
            if name not in active:
                self._pipeline.delete_adapters(self._keys[name])
                del self._loaded[name]
                self.when_dropped(name)


def discover(sources: Sequence[AdapterSource]) -> dict[str, Path]:
    """Adapter files by name: a file's stem, or its folder's name where diffusers or PEFT chose the
    file's, or where files of several folders are called the same.

    Raises:
        CheckpointError: a source that holds no adapter, or two adapters of one name.
    """
    found: dict[str, Path] = {}
    for source in sources:
        files = files_in(source.path)
        if not files:
            raise CheckpointError(f"LORA_PATHS={source.entry} {_lack(source.path)}")
        for name, file in named(source, files):
            if found.setdefault(name, file) != file:
                raise CheckpointError(
                    f"LORA_PATHS: two adapters are named {name}: {found[name]} and {file}"
                )
    return found


def named(source: AdapterSource, files: Sequence[Path]) -> list[tuple[str, Path]]:
    """The files of one source with their names."""
    names = [source.name_of(file) for file in files]
    return [
        (file.parent.name if names.count(name) > 1 and file.parent != source.path else name, file)
        for name, file in zip(names, files, strict=True)
    ]


def files_in(path: Path) -> list[Path]:
    """What a file or folder holds that may be an adapter, in safetensors: its own files and those
    of the folders in it, but what systems leave there. Of a folder that diffusers or PEFT wrote,
    their file alone; a pipeline's folders hold its components."""
    if path.is_file():
        return [path] if is_safetensors(path) else []
    if own := _own(path):
        return own
    pipeline = (path / "model_index.json").exists()
    folders = [one for one in entries(path) if one.is_dir() and not pipeline]
    below = [file for folder in folders for file in _own(folder) or safetensors_in(folder)]
    return sorted([*safetensors_in(path), *below])


def _own(folder: Path) -> list[Path]:
    return [folder / name for name in NAMED_BY_FOLDER if (folder / name).is_file()]


def _lack(path: Path) -> str:
    """What a place without adapters is instead, and what to do."""
    here = [path] if path.is_file() else entries(path)
    names = [one.name for one in here]
    below = [file for one in here if one.is_dir() for file in entries(one)]
    pickles = [one.name for one in (*here, *below) if one.suffix.lower() in PICKLES]
    if pickles:
        told = f"has only pickled weights ({', '.join(pickles)}), which can run code when opened"
        return f"{told}: convert them to safetensors"
    return "is neither a .safetensors file nor a folder that holds adapters; it holds " + (
        ", ".join(names[:8]) or "nothing"
    )
