"""Checkpoints of a run: written beside and renamed, so that each is whole or absent; bounded in
number."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from atelier_training.dreambooth.errors import OptionError
from atelier_training.dreambooth.options import FREE_FIELDS, TrainOptions


@dataclass(frozen=True)
class Checkpoints:
    """The folder `output`/checkpoints of one run. A checkpoint only continues a run of equal
    options and equal data."""

    options: TrainOptions
    data_hash: str

    @property
    def folder(self) -> Path:
        return self.options.output / "checkpoints"

    def all(self) -> list[Path]:
        """Whole checkpoints, oldest first."""
        return sorted(path for path in self.folder.glob("step-*") if path.suffix != ".part")

    def save(self, step: int, state: dict[str, Any]) -> Path:
        path = self.folder / f"step-{step:08d}"
        part = path.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        about = {
            "step": step,
            "data_hash": self.data_hash,
            "options": self.options.model_dump(mode="json"),
        }
        (part / "about.json").write_text(json.dumps(about, indent=2))
        with (part / "state.pt").open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        shutil.rmtree(path, ignore_errors=True)
        part.rename(path)
        for old in self.all()[: -self.options.keep_checkpoints]:
            shutil.rmtree(old)
        return path

    def newest(self) -> dict[str, Any] | None:
        """The state of the newest checkpoint, on the CPU and read as it is used, or None.

        Raises:
            OptionError: it belongs to a run with other options or other data.
        """
        paths = self.all()
        if not paths:
            return None
        about = json.loads((paths[-1] / "about.json").read_text())
        now = self.options.model_dump(mode="json")
        differing = [n for n in now if n not in FREE_FIELDS and about["options"].get(n) != now[n]]
        if differing:
            told = ", ".join(
                f"{name}: {about['options'].get(name)!r} then, {now[name]!r} now"
                for name in differing
            )
            raise OptionError(
                f"output={self.options.output} holds a run with other options ({told}); use another"
                " folder"
            )
        if about["data_hash"] != self.data_hash:
            raise OptionError(
                f"output={self.options.output} holds a run on other pictures; use another folder"
            )
        state: dict[str, Any] = torch.load(
            paths[-1] / "state.pt", map_location="cpu", weights_only=True, mmap=True
        )
        return state
