"""transformers' classifiers behind gates: called from requests' greenlets, their calls are batched,
proven and watched for memory by the engine like those of the pipeline's own modules. They compute
in float32 and stay on the device."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.nn import functional

from atelier.errors import CheckpointError
from atelier.images.interception import Gate, Stage
from atelier.sources.checkpoint.classifier import ROWS, ClassifierFolder

RESAMPLING = {0: "nearest", 2: "bilinear", 3: "bicubic", 1: "bicubic"}
"""Pillow's filters by number; torch has no Lanczos."""

MOST_TOKENS = 512
OVERLAP = 64
"""Tokens that parts of a long prompt share, so that no phrase is cut in two unseen."""

STEP = 64
"""Parts are padded to a multiple of it, so that prompts of different requests are one batch."""

MOST_CONFIGURED = 100_000
"""Tokenizers that know no limit say a larger number."""


class Classifier:
    """One model on its device, and which of its labels count."""

    def __init__(self, folder: ClassifierFolder, device: str, stage: Stage) -> None:
        """
        Raises:
            CheckpointError: transformers cannot load it.
        """
        import transformers

        transformers.utils.logging.disable_progress_bar()
        self.folder = folder
        self.device = torch.device(device)
        texts = folder.variable == "PROMPT_CHECKER"
        kind = "SequenceClassification" if texts else "ImageClassification"
        try:
            model = getattr(transformers, f"AutoModelFor{kind}").from_pretrained(
                folder.path,
                dtype=torch.float32,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
            )
            self._read(folder)
        except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
            raise CheckpointError(
                f"{folder.variable}={folder.path} cannot be loaded: {error}"
            ) from None
        self._model = model.eval().requires_grad_(False).to(self.device)
        self._gate = Gate(folder.variable.lower(), self._model, "forward", stage)
        self._gate.put_up()
        self._check()

    def _read(self, folder: ClassifierFolder) -> None:
        """Load what prepares the inputs."""
        raise NotImplementedError

    def _sample(self) -> dict[str, torch.Tensor]:
        """A row of inputs, to try the model with."""
        raise NotImplementedError

    def _check(self) -> None:
        with torch.no_grad():
            scores = self.scores(self._sample())
        if scores.shape[1] != len(self.folder.labels):
            raise CheckpointError(
                f"{self.folder.variable}={self.folder.path} has {scores.shape[1]} outputs and"
                f" {len(self.folder.labels)} labels"
            )

    def scores(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Rows x labels, on the device, without waiting for it."""
        rows = len(next(iter(inputs.values())))
        parts = []
        for start in range(0, rows, ROWS):
            part = {name: one[start : start + ROWS] for name, one in inputs.items()}
            parts.append(self._model(**part).logits)
        logits = torch.cat(parts)
        return logits.sigmoid() if self.folder.several_hold else logits.softmax(-1)

    def flags(self, scores: torch.Tensor) -> list[tuple[str, ...]]:
        """The labels that count, for each row. Waits for the device. A score that is no number
        counts: a filter that fails does not let through."""
        places = [(self.folder.labels.index(name), name, least)
                  for name, least in self.folder.thresholds.items()]  # fmt: skip
        return [
            tuple(name for place, name, least in places if not row[place] < least)
            for row in scores.tolist()
        ]


class PictureClassifier(Classifier):
    """Looks at pictures."""

    def __init__(self, folder: ClassifierFolder, device: str) -> None:
        super().__init__(folder, device, Stage.CHECK)

    def _read(self, folder: ClassifierFolder) -> None:
        from transformers import AutoImageProcessor

        self._processor: Any = AutoImageProcessor.from_pretrained(
            folder.path, local_files_only=True, trust_remote_code=False
        )

    def _sample(self) -> dict[str, torch.Tensor]:
        return self.prepare(torch.zeros(1, 64, 96, 3))

    def prepare(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Rows x height x width x channels in 0..1, as the model's image processor would prepare
        the finished pictures, on the device they are on."""
        processor = self._processor
        rows = pixels[..., :3].permute(0, 3, 1, 2).to(self.device, torch.float32)
        rows = (rows * 255).round().clamp(0, 255)
        if processor.do_resize:
            rows = self._resized(rows)
        if getattr(processor, "do_center_crop", False):
            rows = _cropped(rows, processor.crop_size.height, processor.crop_size.width)
        if processor.do_rescale:
            rows = rows * processor.rescale_factor
        if processor.do_normalize:
            mean, std = (
                rows.new_tensor(one).view(1, -1, 1, 1)
                for one in (processor.image_mean, processor.image_std)
            )
            rows = (rows - mean) / std
        return {"pixel_values": rows}

    def _resized(self, rows: torch.Tensor) -> torch.Tensor:
        size, crop = self._processor.size, getattr(self._processor, "crop_pct", None)
        height, width = size.height, size.width
        edge = size.shortest_edge
        if edge and crop and edge < 384:  # ConvNeXT enlarges first and cuts the middle out
            scaled = _scaled(rows, int(edge / crop), self._mode)
            return _cropped(scaled, edge, edge)
        if edge and crop:
            height = width = edge
        elif edge:
            return _scaled(rows, edge, self._mode)
        return _interpolated(rows, (height, width), self._mode)

    @property
    def _mode(self) -> str:
        return RESAMPLING.get(int(self._processor.resample), "bilinear")


class PromptClassifier(Classifier):
    """Looks at prompts."""

    def __init__(self, folder: ClassifierFolder, device: str) -> None:
        super().__init__(folder, device, Stage.ENCODE)

    def _read(self, folder: ClassifierFolder) -> None:
        from transformers import AutoConfig, AutoTokenizer

        self._tokenizer: Any = AutoTokenizer.from_pretrained(
            folder.path, local_files_only=True, trust_remote_code=False
        )
        config = AutoConfig.from_pretrained(folder.path, local_files_only=True)
        # RoBERTa counts positions from behind the padding token's.
        positions = getattr(config, "max_position_embeddings", MOST_TOKENS) or MOST_TOKENS
        told = min(self._tokenizer.model_max_length, MOST_CONFIGURED)
        self._most = min(told, MOST_TOKENS, positions - 2 if positions > 4 else positions)

    def _sample(self) -> dict[str, torch.Tensor]:
        return self.on_device(self.prepare(["a"]))

    def prepare(self, texts: list[str]) -> dict[str, torch.Tensor]:
        """A row for every part of every text, on the CPU."""
        rows = self._tokenizer(
            texts,
            truncation=True,
            max_length=self._most,
            stride=min(OVERLAP, self._most // 4),
            return_overflowing_tokens=True,
        )
        longest = max(map(len, rows["input_ids"]))
        width = min(self._most, math.ceil(longest / STEP) * STEP)
        padded = self._tokenizer.pad(
            {name: rows[name] for name in ("input_ids", "attention_mask")},
            padding="max_length",
            max_length=width,
            return_tensors="pt",
        )
        return {name: padded[name] for name in ("input_ids", "attention_mask")}

    def on_device(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The same rows where the model is."""
        return {name: one.to(self.device) for name, one in inputs.items()}


def _scaled(rows: torch.Tensor, edge: int, mode: str) -> torch.Tensor:
    """The shorter side is `edge` pixels long."""
    height, width = rows.shape[-2:]
    short = min(height, width)
    return _interpolated(rows, (edge * height // short, edge * width // short), mode)


def _interpolated(rows: torch.Tensor, size: tuple[int, int], mode: str) -> torch.Tensor:
    if mode == "nearest":
        return functional.interpolate(rows, size, mode=mode)
    made = functional.interpolate(rows, size, mode=mode, antialias=True, align_corners=False)
    return made.round().clamp(0, 255)  # Pillow's result has eight bits


def _cropped(rows: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The middle, with black around it where the picture is smaller."""
    lower, narrower = max(0, height - rows.shape[-2]), max(0, width - rows.shape[-1])
    if lower or narrower:
        above, left = (lower + 1) // 2, (narrower + 1) // 2  # as transformers rounds
        rows = functional.pad(rows, (left, narrower - left, above, lower - above))
    top, start = (rows.shape[-2] - height) // 2, (rows.shape[-1] - width) // 2
    return rows[..., top : top + height, start : start + width]
