"""The model card beside the weights: where they come from, in words for people and in JSON for
machines."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from atelier_training.dreambooth.options import TrainOptions

PACKAGES = ("torch", "diffusers", "transformers", "peft", "accelerate")
CARD, RECORD = "README.md", "training.json"


def write_card(
    options: TrainOptions, pipeline_class: str, data: dict[str, Any], result: dict[str, Any]
) -> None:
    """Write `training.json` and `README.md` into the output folder; `data` and `result` are shown
    as they are."""
    record = {
        "base_model": options.model.name,
        "pipeline_class": pipeline_class,
        "data": data,
        "result": result,
        "parameters": options.model_dump(
            mode="json", exclude={"model", "data", "output", "class_data"}
        ),
        "versions": {name: _version(name) for name in PACKAGES},
        "scores": {},
    }
    _write(options.output, record)


def read_record(folder: Path) -> dict[str, Any]:
    """The record of the training whose output is `folder`."""
    record: dict[str, Any] = json.loads((folder / RECORD).read_text())
    return record


def add_scores(folder: Path, scores: dict[str, float]) -> None:
    """Enter the evaluation's scores into the record and the card."""
    record = read_record(folder)
    record["scores"] = scores
    _write(folder, record)


def _write(folder: Path, record: dict[str, Any]) -> None:
    (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n")
    (folder / CARD).write_text(_render(record))


def _render(record: dict[str, Any]) -> str:
    parameters = record["parameters"]
    usage = (
        f'pipeline = DiffusionPipeline.from_pretrained("{record["base_model"]}")\n'
        'pipeline.load_lora_weights("this folder")'
        if parameters["method"] != "full"
        else 'pipeline = DiffusionPipeline.from_pretrained("this folder/model")'
    )
    header = [
        "---",
        f"base_model: {record['base_model']}",
        "library_name: diffusers",
        "tags: [text-to-image]",
    ]
    header.append(f"instance_prompt: {json.dumps(parameters['instance_prompt'])}")
    sections = [
        "\n".join([*header, "---"]),
        f"# {parameters['instance_prompt']}",
        (
            f"A Dreambooth fine-tuning ({parameters['method']}) of `{record['base_model']}`"
            f" ({record['pipeline_class']})."
        ),
        f"```python\n{usage}\n```",
    ]
    for title in ("scores", "data", "result", "parameters", "versions"):
        if record[title]:
            rows = [f"| {name} | {_shown(value)} |" for name, value in record[title].items()]
            sections.append(
                "\n".join([f"## {title.capitalize()}", "", "| | |", "|---|---|", *rows])
            )
    return "\n\n".join(sections) + "\n"


def _shown(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
