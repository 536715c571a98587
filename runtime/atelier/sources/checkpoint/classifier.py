"""Classifiers that filter pictures and prompts: a folder of transformers' with labels and weights,
looked at by its headers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from atelier.errors import CheckpointError, SettingsError
from atelier.settings import Settings
from atelier.sources.checkpoint.contents import Checkpoint
from atelier.sources.checkpoint.folder import read_json
from atelier.sources.checkpoint.headers import read_header
from atelier.sources.checkpoint.listing import safetensors_in

OWN = "own"
"""SAFETY_CHECKER: the one that the pipeline brings along."""

FLOAT32_BYTES = 4
ROWS = 8
"""Pictures, or parts of prompts, of one call."""

PICTURE_ROW_BYTES = 32 * 2**20
"""Working memory of a row of 224 x 224 pixels in float32: ViT-L counts 18 MiB, Swin 21, ResNet 16
by the factor of `hardware.account`."""

PICTURE_ROW_PIXELS = 224 * 224
TEXT_ROW_BYTES = 64 * 2**20
"""The same of 512 tokens: BERT-base counts 47 MiB with its score matrices."""

Kind = Literal["ForImageClassification", "ForSequenceClassification"]


@dataclass(frozen=True)
class ClassifierFolder:
    """A classifier, and the least score by label that the settings count."""

    path: Path
    variable: str
    labels: tuple[str, ...]
    thresholds: Mapping[str, float]
    several_hold: bool
    weights_bytes: int
    working_bytes: int

    @property
    def bytes(self) -> int:
        """What it takes of a device at most."""
        return self.weights_bytes + self.working_bytes


def check_own(settings: Settings, checkpoint: Checkpoint) -> None:
    """See that SAFETY_CHECKER=own has something to name.

    Raises:
        SettingsError: the checkpoint has no checker, or labels are named, of which it has none.
    """
    if settings.safety_checker != OWN:
        return
    if settings.safety_labels:
        raise SettingsError(
            f"SAFETY_LABELS: SAFETY_CHECKER={OWN} knows no labels; leave SAFETY_LABELS empty"
        )
    if checkpoint.component("safety_checker") is None:
        raise SettingsError(
            f"SAFETY_CHECKER={OWN}: {checkpoint.path} brings no safety_checker; name the folder of"
            " an image classifier, or leave it empty"
        )


def classifiers(settings: Settings) -> dict[str, ClassifierFolder]:
    """The classifiers that the settings name, by the setting's name; read from headers alone.

    Raises:
        CheckpointError, SettingsError: one cannot be used; the message says which and why.
    """
    found = {}
    if settings.safety_checker not in ("", OWN):
        found["SAFETY_CHECKER"] = _inspect(
            "SAFETY_CHECKER",
            settings.safety_checker,
            ("SAFETY_LABELS", settings.safety_labels),
            "ForImageClassification",
        )
    if settings.prompt_checker:
        found["PROMPT_CHECKER"] = _inspect(
            "PROMPT_CHECKER",
            settings.prompt_checker,
            ("PROMPT_LABELS", settings.prompt_labels),
            "ForSequenceClassification",
        )
    return found


def _inspect(
    variable: str, name: str, wanted: tuple[str, list[str]], kind: Kind
) -> ClassifierFolder:
    path = Path(name).expanduser()
    where = f"{variable}={name}"
    if not (path / "config.json").is_file():
        raise CheckpointError(f"{where}: there is no config.json; name a folder on this machine")
    config = read_json(path / "config.json")
    if not any(str(one).endswith(kind) for one in config.get("architectures") or ()):
        raise CheckpointError(
            f"{where} is {config.get('architectures')}; it must be a model of transformers whose"
            f" class ends with {kind}"
        )
    files = safetensors_in(path)
    if not files:
        raise CheckpointError(f"{where} has no weights in safetensors; others are not read")
    parameters = sum(elements for file in files for elements in read_header(file).dtypes.values())
    labels = _labels(config)
    return ClassifierFolder(
        path,
        variable,
        labels,
        _thresholds(*wanted, labels, where),
        config.get("problem_type") == "multi_label_classification",
        parameters * FLOAT32_BYTES,
        ROWS * _row_bytes(config, kind),
    )


def _labels(config: dict[str, Any]) -> tuple[str, ...]:
    """In the order of the outputs; transformers counts two where none are named."""
    named = config.get("id2label") or {}
    if not named:
        return tuple(f"LABEL_{index}" for index in range(config.get("num_labels") or 2))
    return tuple(str(named[index]) for index in sorted(named, key=int))


def _thresholds(
    variable: str, wanted: list[str], labels: tuple[str, ...], where: str
) -> dict[str, float]:
    pairs = [entry.partition("=") for entry in wanted]
    found = {name: float(score or 0.5) for name, _, score in pairs}
    told = f"{where} has the labels {', '.join(labels)}"
    if not found:
        raise SettingsError(
            f"{variable} is empty: name what to stop, as in {labels[-1]}=0.7; {told}"
        )
    for name, score in found.items():
        if name not in labels:
            raise SettingsError(f"{variable} names {name!r}; {told}")
        if not 0 < score <= 1:
            raise SettingsError(f"{variable}: {name}={score:g}; a score is above 0 and at most 1")
    return found


def _row_bytes(config: dict[str, Any], kind: Kind) -> int:
    if kind == "ForSequenceClassification":
        return TEXT_ROW_BYTES
    edge = config.get("image_size") or (config.get("vision_config") or {}).get("image_size") or 224
    edges = edge if isinstance(edge, list) else [edge, edge]
    return int(PICTURE_ROW_BYTES * max(1.0, edges[0] * edges[1] / PICTURE_ROW_PIXELS))
