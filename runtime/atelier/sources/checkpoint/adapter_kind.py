"""What a file of LORA_PATHS or EMBEDDINGS is, told from the names and shapes in its header: the
kind of adapter, its layout, the family it was made for, or why it is none."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from atelier.sources.checkpoint.headers import StoredTensor

LORA = re.compile(r"lora[._]|\.lora\.|dora_scale")
KINDS = {"hada_": "LoHa", "lokr_": "LoKr"}
"""Marks in tensor names of LyCORIS's kinds, which PEFT computes."""

UNREAD = {"oft_": "OFT", "boft_": "BOFT", "ia3_": "IA3", "vera_": "VeRA", "glora": "GLoRA"}
"""Marks of kinds that are not read."""

INVERSION = re.compile(r"clip_[lg]|t5\w*|emb_params|string_to_param.*|<.*>")
"""Names of tensors in textual inversions: ComfyUI's, A1111's and diffusers'."""

PEFT_PREFIX = "base_model.model."

CROSS_ATTENTION = re.compile(r"attn2[._]to_[kv].*(lora[._]A|lora[._]down|hada_w1_b)")
"""Layers whose input is the text encoder's output, so that their width tells the family."""

WIDTHS = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2", 2048: "Stable Diffusion XL"}

OF_UNETS = re.compile(
    r"^(unet\.|base_model\.model\.|lora_unet_|lycoris_)?"
    r"(down|up|mid|input|output|middle)_blocks?[._]"
    r"|^unet\."
)
SHARED_NAMES = "Stable Diffusion 3 or FLUX"
FAMILY_NAMES = (
    (re.compile(r"single_transformer_blocks|(double|single)_blocks[._]\d"), "FLUX"),
    (re.compile(r"joint_blocks"), "Stable Diffusion 3"),
    (re.compile(r"transformer_blocks[._]\d+[._](img|txt)_(mlp|mod)"), "Qwen-Image"),
    (re.compile(r"transformer_blocks[._]\d+[._]attn[._](add_[qkv]|to_)"), SHARED_NAMES),
)
"""Names of layers that only the transformers of one family have, the first that fits."""

PIPELINES_OF = {"FLUX": "Flux", "Stable Diffusion 3": "StableDiffusion3", "Qwen-Image": "QwenImage"}
"""How the names of pipelines for transformers begin, by family."""

OTHERS = (
    (
        re.compile(r"^model\.diffusion_model\.|^conditioner\.embedders\.|^cond_stage_model\."),
        "a full checkpoint: set it in MODEL_ID",
    ),
    (
        re.compile(r"^control_model\.|controlnet_cond_embedding|^controlnet_blocks\."),
        "a ControlNet: set it in CONTROLNETS",
    ),
    (
        re.compile(r"^(image_proj|ip_adapter|image_proj_model)\."),
        "an IP-Adapter: set it in IP_ADAPTERS",
    ),
    (
        re.compile(r"^(first_stage_model\.|vae\.)?(en|de)coder\.(down|up)(_blocks)?\.\d"),
        "a VAE: put it into the folder vae of the checkpoint in MODEL_ID",
    ),
    (
        re.compile(r"RDB\d\.conv\d|^(body|model\.1\.sub)\.\d+\.(rdb|RDB)|^conv_first\."),
        "an upscaler: set it in UPSCALERS",
    ),
    (
        re.compile(r"^(text_model\.)?encoder\.(layers|block)\.\d|^model\.layers\.\d"),
        "a text encoder: put it into the folder of its name in the checkpoint of MODEL_ID",
    ),
    (
        re.compile(
            r"^(down_blocks|transformer_blocks|double_blocks|joint_blocks|single_transformer_blocks"
            r"|blocks)\.\d"
        ),
        "the weights of a whole denoiser: set its pipeline's folder in MODEL_ID",
    ),
)
"""What else is distributed in one file, by the names of its tensors, and where it belongs."""


@dataclass(frozen=True)
class AdapterLook:
    """What a header says. `fault` is why no model can use the file as an adapter, empty if one
    might; `family` is empty where names and widths do not tell."""

    kind: str
    layout: str = ""
    part: str = ""
    family: str = ""
    cross_width: int = 0
    fault: str = ""

    def __str__(self) -> str:
        layout = f", {self.layout} layout" if self.layout else ""
        family = f", for {self.family}" if self.family else ""
        return f"{self.kind}{layout}{family}"

    @property
    def by_peft(self) -> bool:
        """Whether PEFT reads it, because diffusers does not."""
        return self.kind in KINDS.values() or self.layout == "PEFT"


def is_adapter(names: Collection[str]) -> bool:
    """Whether most tensors are an adapter's, of any kind."""
    marked = sum(bool(LORA.search(name)) or _marked(name) != "" for name in names)
    return bool(names) and marked * 2 > len(names)


def look_at(tensors: Mapping[str, StoredTensor]) -> AdapterLook:
    """Tell what a file with these tensors is."""
    if is_inversion(tensors):
        return AdapterLook(
            "textual inversion",
            fault="it is a textual inversion (an embedding), not a LoRA adapter: set it in"
            " EMBEDDINGS",
        )
    kinds = {kind for name in tensors if (kind := _marked(name))}
    if unread := kinds & set(UNREAD.values()):
        kind = min(unread)
        return AdapterLook(
            kind,
            fault=f"it is an adapter of the kind {kind}, which is not read here: convert it to"
            " LoRA",
        )
    if not kinds and not any(LORA.search(name) for name in tensors):
        other = next((told for mark, told in OTHERS if any(map(mark.search, tensors))), "")
        fault = f"it is {other}" if other else "it holds no LoRA weights"
        return AdapterLook("", fault=fault)
    kind = min(kinds) if kinds else "LoRA"
    whole = {
        one.dtype for one in tensors.values() if len(one.shape) > 1 and "float" not in one.dtype
    }
    fault = (
        f"its weights are {', '.join(sorted(whole))}, not floating-point numbers" if whole else ""
    )
    if kinds and any("dora_scale" in name for name in tensors):
        fault = f"it is a {kind} adapter with DoRA's scales, which are not read: merge them"
    width = cross_width(tensors)
    unet = any(map(OF_UNETS.search, tensors))
    named = next((family for mark, family in FAMILY_NAMES if any(map(mark.search, tensors))), "")
    named = "" if unet else named
    return AdapterLook(
        kind,
        _layout(tensors),
        "unet" if unet else "transformer" if named else "",
        named or WIDTHS.get(width, ""),
        width,
        fault,
    )


def is_inversion(names: Collection[str]) -> bool:
    """Whether all tensors are a textual inversion's."""
    return bool(names) and all(INVERSION.fullmatch(name) for name in names)


def cross_width(tensors: Mapping[str, StoredTensor]) -> int:
    """The width of the text that an adapter's layers of cross attention take; 0 if it has none."""
    return min(
        (
            one.shape[1]
            for name, one in tensors.items()
            if len(one.shape) == 2 and CROSS_ATTENTION.search(name)
        ),
        default=0,
    )


def _layout(names: Collection[str]) -> str:
    if all(name.startswith(PEFT_PREFIX) for name in names):
        return "PEFT"
    if any(re.match(r"(lora|lycoris)_(te\d?|unet|transformer)?", name) for name in names):
        return "kohya"
    return "diffusers"


def _marked(name: str) -> str:
    return next((kind for mark, kind in (KINDS | UNREAD).items() if mark in name), "")
