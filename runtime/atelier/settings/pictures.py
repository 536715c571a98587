"""Settings of what a picture is drawn by besides its prompt, and of what becomes of it: controls,
filters, marks, where it goes, how long it is kept."""

from __future__ import annotations

from typing import Literal

from pydantic_settings import BaseSettings

from atelier.settings.groups import MARKS, MODEL, OWN, PICTURES, REQUESTS
from atelier.settings.values import (
    ByteCount,
    Names,
    ObjectPrefix,
    ObjectPrefixes,
    WebBase,
    WeightedNames,
)


class PictureSettings(BaseSettings):
    """The part of `Settings` for pictures alone."""

    controlnets: Names = MODEL(
        [],
        (
            "ControlNets and T2I-Adapters that a request's control may name, name=source or source"
            " (from where MODEL_ID may come); comma-separated."
        ),
        PICTURES,
    )
    ip_adapters: Names = MODEL(
        [],
        "IP-Adapters that a request's image_prompt may name, written as CONTROLNETS.",
        PICTURES,
    )

    safety_checker: str = MARKS(
        "",
        "Folder of an image-classification model that looks at every picture; own: the checker that"
        " the pipeline brings along; empty: none does.",
        PICTURES,
    )
    safety_labels: WeightedNames = MARKS(
        [],
        "Labels of SAFETY_CHECKER that count, label or label=score; a bare one from 0.5 on.",
        PICTURES,
    )
    safety_action: Literal["block", "blur", "flag"] = MARKS(
        "block",
        (
            "What becomes of a picture with such a label: an error, a blurred picture, or a mark in"
            " the answer."
        ),
        PICTURES,
    )
    prompt_blocklist: str = MARKS(
        "", "File of words and phrases, one a line, that no prompt may have.", PICTURES
    )
    prompt_checker: str = MARKS(
        "",
        "Folder of a text-classification model that looks at every prompt; empty: none does.",
        PICTURES,
    )
    prompt_labels: WeightedNames = MARKS(
        [], "Labels of PROMPT_CHECKER that refuse a prompt, as SAFETY_LABELS.", PICTURES
    )

    provenance: Literal["off", "metadata", "c2pa"] = MARKS(
        "off",
        (
            "Marks in pictures: metadata says that a model drew it, which one, with what seed;"
            " c2pa signs that too."
        ),
        PICTURES,
    )
    provenance_prompt: bool = MARKS(False, "Write the prompt into the marks too.", PICTURES)
    c2pa_certificate: str = MARKS(
        "",
        "PEM file of the signer's certificate and those above it; empty: self-made, for trials.",
        PICTURES,
    )
    c2pa_key: str = MARKS("", "PEM file of the certificate's private key.", PICTURES)

    output_url: ObjectPrefix = REQUESTS(
        "",
        (
            "s3://bucket/prefix that pictures go to, and answers have URLs; empty: answers hold the"
            " pictures."
        ),
        PICTURES,
    )
    allowed_outputs: ObjectPrefixes = REQUESTS(
        [],
        "Further s3://bucket/prefix that requests may name in output; comma-separated.",
        PICTURES,
    )
    output_public_url: str = REQUESTS(
        "",
        (
            "Base of the URLs of stored pictures, before an object's key; {bucket} in it is the"
            " bucket; empty: presigned, for RESULT_SECONDS."
        ),
        PICTURES,
    )
    result_seconds: float = REQUESTS(
        3600, "Seconds that a picture URL, a finished job or a response stays.", OWN, gt=0
    )
    result_bytes: ByteCount = REQUESTS(
        512 * 2**20, "Memory for them, or room in a store; the oldest give way.", OWN, ge=2**16
    )
    public_url: WebBase = REQUESTS(
        "", "Base of picture URLs, such as https://host; empty: the request's Host.", PICTURES
    )

    embeddings: Names = MODEL(
        [],
        (
            "Textual inversions, name=source or source (from where MODEL_ID may come): prompts"
            " say <name>; comma-separated."
        ),
        PICTURES,
    )
    upscalers: Names = MODEL(
        [],
        (
            "Networks that enlarge pictures (ESRGAN, Real-ESRGAN, compact), in safetensors,"
            " written as EMBEDDINGS."
        ),
        PICTURES,
    )
    max_upscaled_pixels: int = REQUESTS(
        4096 * 4096, "Most pixels of all enlarged pictures of a request.", PICTURES, ge=64
    )
