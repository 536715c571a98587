"""Whether a file of LORA_PATHS is an adapter for the model at hand, told from its header alone."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from atelier.errors import CheckpointError
from atelier.images.adapter_layers import AdapterLayers
from atelier.sources.checkpoint.adapter_kind import PIPELINES_OF, AdapterLook, look_at
from atelier.sources.checkpoint.headers import read_header


def look_into(path: Path) -> AdapterLook:
    """What the file is; a file that cannot be read is a fault."""
    try:
        return look_at(read_header(path).tensors)
    except CheckpointError as error:
        return AdapterLook("", fault=error.message)


def fault_of(path: Path, pipeline: Any) -> str:
    """Why the file cannot be used with this pipeline; empty if nothing speaks against it."""
    look = look_into(path)
    width = getattr(
        getattr(getattr(pipeline, "unet", None), "config", None), "cross_attention_dim", None
    )
    parts = [part for part in ("unet", "transformer") if getattr(pipeline, part, None) is not None]
    fault = look.fault or misfit(look, type(pipeline).__name__, parts, width)
    if fault or not by_layers(look, pipeline):
        return fault
    try:
        AdapterLayers.of(path, pipeline)
    except CheckpointError as error:
        return f"it is a {look}: {error.message}"
    return ""


def by_layers(look: AdapterLook, pipeline: Any) -> bool:
    """Whether the file's layers are looked up here: PEFT reads it, or the family's loader knows no
    layout but diffusers' own."""
    from diffusers.loaders import SD3LoraLoaderMixin

    plain = isinstance(pipeline, SD3LoraLoaderMixin) and look.layout == "kohya"
    return look.by_peft or plain


def misfit(look: AdapterLook, name: str, parts: Collection[str], width: Any) -> str:
    """Why a sound adapter does not go with a pipeline of class `name` that has these denoisers,
    and whose cross attention takes `width` numbers a token; empty if it may."""
    made = f"it was made for {look.family}" if look.family else "it was made for another family"
    if look.part and look.part not in parts:
        return f"{made}, which has a {look.part}; {name} has none: use one that was made for {name}"
    own = next((one for one, begin in PIPELINES_OF.items() if name.startswith(begin)), "")
    if own and look.family in PIPELINES_OF and look.family != own:
        return f"{made}, and {name} is {own}: use one that was made for it"
    if isinstance(width, int) and look.cross_width and look.cross_width != width:
        return (
            f"{made}: its cross attention takes {look.cross_width} numbers a token,"
            f" {name}'s takes {width}"
        )
    return ""
