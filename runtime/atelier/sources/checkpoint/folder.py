"""What a checkpoint holds, read from its configuration files and headers before anything is loaded.

`inspect` names every fault of the format exactly, so that a load of twenty minutes never ends in a
KeyError. The loader, the memory plan and `atelier doctor` read the result; none of them opens the
folder again to guess. Whether the classes named here can be imported is the loader's question.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from atelier.errors import CheckpointError, shown
from atelier.sources.checkpoint import language_config, single_file
from atelier.sources.checkpoint.contents import PICKLES, Checkpoint, Component
from atelier.sources.checkpoint.listing import entries
from atelier.sources.checkpoint.weight_files import (
    Weights,
    WeightSet,
    pick,
    read_weights,
    weight_sets,
)

WEIGHTLESS = re.compile(r"Scheduler|Tokenizer|Processor$|FeatureExtractor|ImageProcessor|Guidance$")
"""Classes of a pipeline that have configuration but no weights."""


def inspect(
    path: Path | str,
    *,
    variant: str = "",
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
) -> Checkpoint:
    """Read what is at `path`, headers and configuration only.

    Args:
        variant: weight file variant to prefer (VARIANT); empty: the plain files, else the only
            variant there is.
        allow_pickle, trust_remote_code: what else counts as a problem.

    Raises:
        CheckpointError: nothing at `path` can be recognised as a checkpoint. Anything less is in
            `problems`.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"{path} does not exist")
    if path.is_file():
        return single_file.inspect_file(path, allow_pickle)
    if (path / "model_index.json").is_file():
        return _pipeline(path, variant, allow_pickle, trust_remote_code)
    if single_file.is_adapter_folder(path):
        return single_file.inspect_adapter(path, allow_pickle)
    config = path / "config.json"
    if config.is_file() and language_config.names_a_model(read_json(config)):
        return _language_model(path, variant, allow_pickle)
    weights = [one for one in entries(path) if one.suffix == ".safetensors"]
    if len(weights) == 1 and not config.is_file():
        return single_file.inspect_file(weights[0], allow_pickle)
    raise CheckpointError(_unrecognised(path))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, or a CheckpointError that names the file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise CheckpointError(f"{path} cannot be read as JSON: it is nested too deep") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds no JSON object")
    return value


def weigh(
    name: str, folder: Path, sets: list[WeightSet], variant: str, allow_pickle: bool
) -> tuple[Weights, list[str]]:
    """Read the headers of the set to load from `folder`, or say why there is none."""
    chosen = pick(sets, variant, allow_pickle)
    if chosen:
        weights = read_weights(chosen)
        return weights, list(weights.problems)
    nothing = Weights((), 0, {}, 0, ())
    pickles = sorted(one.name for one in folder.iterdir() if one.suffix in PICKLES)
    if (sets and all(one.pickle for one in sets)) or (pickles and not sets):
        text = (
            f"{name}: {folder} has only pickled weights ({', '.join(pickles)}), which can run code"
            " when opened"
        )
        return nothing, [f"{text}: convert them to safetensors or set ALLOW_PICKLE=true"]
    names = sorted({one.variant for one in sets})
    if names:
        return nothing, [
            f"{name}: {folder} has several variants and no plain weights: set VARIANT to one of"
            f" {names}"
        ]
    here = ", ".join(sorted(one.name for one in folder.iterdir())) or "nothing"
    hint = "; GGUF is for ENGINE=llamacpp" if any(folder.glob("*.gguf")) else ""
    return nothing, [f"{name}: no weights in {folder}; it holds {here}{hint}"]


def _pipeline(path: Path, variant: str, allow_pickle: bool, trust_remote_code: bool) -> Checkpoint:
    index = read_json(path / "model_index.json")
    entries = {
        name: (str(value[0]), str(value[1]))
        for name, value in index.items()
        if isinstance(value, list)
        and len(value) == 2
        and not name.startswith("_")
        and value[0]
        and value[1]
    }
    for name in entries:
        if Path(name).name != name:
            raise CheckpointError(
                f"{path / 'model_index.json'} names a component outside its folder: {shown(name)}"
            )
    sets = {name: weight_sets(path / name) for name in entries if (path / name).is_dir()}
    variants = tuple(
        sorted(
            {
                one.variant
                for group in sets.values()
                for one in group
                if allow_pickle or not one.pickle
            }
        )
    )
    problems = _lacking(variant, variants)
    variant = variant or _only_variant(sets.values(), allow_pickle)
    components = []
    for name, (library, class_name) in entries.items():
        component, faults = _component(
            path, name, library, class_name, sets.get(name, []), variant, allow_pickle
        )
        components.append(component)
        problems += faults
    pipeline_class, code = _custom_code(path, index, entries)
    if not pipeline_class:
        problems.append(f"{path / 'model_index.json'} names no pipeline class (_class_name)")
    if code and not trust_remote_code:
        problems.append(
            f"the checkpoint brings Python code of its own ({', '.join(code)}): set"
            " TRUST_REMOTE_CODE=true"
        )
    return Checkpoint(
        kind="pipeline",
        path=path,
        pipeline_class=pipeline_class,
        components=tuple(components),
        variant=variant,
        variants=variants,
        problems=tuple(problems),
        remote_code=tuple(code),
        absent=tuple(name for name, value in index.items() if value == [None, None]),
    )


def _component(
    root: Path,
    name: str,
    library: str,
    class_name: str,
    sets: list[WeightSet],
    variant: str,
    allow_pickle: bool,
) -> tuple[Component, list[str]]:
    folder, bare = root / name, Component(name, class_name, library)
    if not folder.is_dir():
        return bare, [
            f"{name}: {class_name} is listed in model_index.json, but the folder {folder} is"
            " missing"
        ]
    if WEIGHTLESS.search(class_name):
        return bare, (
            [] if entries(folder) else [f"{name}: the folder {folder} of {class_name} is empty"]
        )
    if not (folder / "config.json").is_file():
        return bare, [f"{name}: {folder / 'config.json'} of {class_name} is missing"]
    try:
        config = read_json(folder / "config.json")
    except CheckpointError as error:
        return bare, [error.message]
    weights, faults = weigh(name, folder, sets, variant, allow_pickle)
    return _weighted(name, class_name, library, config, weights, sets), faults


def _weighted(
    name: str,
    class_name: str,
    library: str,
    config: dict[str, Any],
    weights: Weights,
    sets: list[WeightSet],
) -> Component:
    packed = config.get("quantization_config") or {}
    method = (
        str(packed.get("quant_method", "unknown")) if isinstance(packed, dict) and packed else ""
    )
    variants = tuple(sorted({one.variant for one in sets}))
    return Component(
        name,
        class_name,
        library,
        config,
        weights.files,
        weights.bytes,
        weights.dtypes,
        weights.linear,
        method,
        variants,
    )


def _lacking(variant: str, variants: tuple[str, ...]) -> list[str]:
    """What is wrong with a variant that was asked for."""
    if not variant or variant in variants:
        return []
    named = ", ".join(one for one in variants if one) or "none"
    return [f"VARIANT={variant} is not in this checkpoint; variants here: {named}"]


def _only_variant(groups: Any, allow_pickle: bool) -> str:
    """The one variant that every component without plain weights has, or empty."""
    lacking = []
    for group in groups:
        names = {one.variant for one in group if allow_pickle or not one.pickle}
        if names and "" not in names:
            lacking.append(names)
    shared = set.intersection(*lacking) if lacking else set()
    return shared.pop() if len(shared) == 1 else ""


def _custom_code(
    path: Path, index: dict[str, Any], entries: Mapping[str, tuple[str, str]]
) -> tuple[str, list[str]]:
    """The pipeline's class name, and the Python files that model_index.json refers to."""
    code = [
        f"{name}/{library}.py"
        for name, (library, _) in entries.items()
        if (path / name / f"{library}.py").is_file()
    ]
    named = index.get("_class_name")
    if isinstance(named, list) and len(named) == 2:
        code.append(f"{named[0]}.py")
        named = named[1]
    return (named if isinstance(named, str) else ""), code


def _language_model(path: Path, variant: str, allow_pickle: bool) -> Checkpoint:
    config = read_json(path / "config.json")
    sets = weight_sets(path)
    variants = tuple(sorted({one.variant for one in sets if allow_pickle or not one.pickle}))
    lacking = _lacking(variant, variants)
    variant = variant or _only_variant([sets], allow_pickle)
    weights, problems = weigh("model", path, sets, variant, allow_pickle)
    problems += lacking
    architecture = language_config.architecture(config, path)
    if not any(path.glob("tokenizer*")) and not any(path.glob("*vocab*")):
        problems.append(f"tokenizer: no tokenizer files in {path}")
    code = language_config.code_files(config)
    model = _weighted("model", architecture, "transformers", config, weights, sets)
    return Checkpoint(
        "language_model",
        path,
        architecture,
        (model,),
        variant,
        variants,
        tuple(problems),
        tuple(code),
    )


def _unrecognised(path: Path) -> str:
    if any(path.glob("*.gguf")):
        return f"{path} holds weights in GGUF, which ENGINE=llamacpp serves"
    below = sorted(one.parent.name for one in path.glob("*/model_index.json"))
    if below:
        return (
            f"{path} is one level too high: model_index.json is in {', '.join(below)}; let MODEL_ID"
            " point there"
        )
    pickles = sorted(one.name for one in path.iterdir() if one.suffix in PICKLES)
    names = [one.name for one in entries(path)]
    here = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") if names else "nothing"
    advice = "; pickled weights need a configuration beside them" if pickles else ""
    return (
        f"{path} is no checkpoint: it has neither model_index.json (a pipeline), nor config.json"
        " with architectures (a language model), nor LoRA weights, nor exactly one .safetensors"
        f" file; it holds {here}{advice}"
    )
