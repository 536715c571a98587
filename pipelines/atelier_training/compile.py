"""Compiles the pipeline into the YAML files that are checked in: `python -m
atelier_training.compile [FOLDER]`.

Two files, because drivers before 2.15 refuse the field `optional` that kfp-kubernetes now writes
for secrets.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml
from kfp import compiler

from atelier_training.dreambooth.pipeline import dreambooth

FOLDER = Path(__file__).parent / "dreambooth"
CURRENT, OLDER = "pipeline.yaml", "pipeline-2.14.yaml"


def compile_pipeline(folder: Path) -> list[Path]:
    """Write both files and return their paths."""
    current, older = folder / CURRENT, folder / OLDER
    compiler.Compiler().compile(dreambooth, str(current))
    documents = [
        _without_optional(document) for document in yaml.safe_load_all(current.read_text())
    ]
    older.write_text(yaml.safe_dump_all(documents, sort_keys=True))
    return [current, older]


def _without_optional(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_optional(item) for item in value]
    if isinstance(value, dict):
        is_secret = "secretName" in value or "secretNameParameter" in value
        return {
            k: _without_optional(v) for k, v in value.items() if not (is_secret and k == "optional")
        }
    return value


if __name__ == "__main__":
    for path in compile_pipeline(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER):
        print(path)
