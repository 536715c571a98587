"""What transformers' config.json says of a language model: its class, and Python files of its
own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from atelier.errors import CheckpointError, shown


def names_a_model(config: dict[str, Any]) -> bool:
    """Whether it is transformers' config of a whole model, which names its architecture or, when
    written by hand or by old versions, only its type."""
    return bool(config.get("architectures") or config.get("model_type"))


def architecture(config: dict[str, Any], path: Path) -> str:
    """The class that config.json names, or that its model type stands for."""
    named = config.get("architectures")
    if not named:
        return _causal_class(config, path)
    if not isinstance(named, list) or not isinstance(named[0], str):
        raise CheckpointError(
            f"{path / 'config.json'}: architectures={shown(named)} is not a list of class names"
        )
    return named[0]


def _causal_class(config: dict[str, Any], path: Path) -> str:
    """The class that generates text for this model type, as transformers lists it."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    kind = str(config["model_type"])
    name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind)
    if name is None:
        raise CheckpointError(
            f"{path / 'config.json'} names no architectures, and model_type={kind!r} is no language"
            " model that the installed transformers knows: write the class into architectures"
        )
    return str(name)


def code_files(config: dict[str, Any]) -> list[str]:
    """The Python files that the classes of `auto_map` come from."""
    mapped = config.get("auto_map") or {}
    if not isinstance(mapped, dict):  # text, where only one class is mapped
        mapped = {"": mapped}
    classes = (
        str(one)
        for value in mapped.values()
        for one in (value if isinstance(value, list) else [value])
        if one
    )
    return sorted({f"{name.split('--')[-1].split('.')[0]}.py" for name in classes})
