"""Subject likeness and prompt following as in the DreamBooth paper (arXiv:2208.12242, section 4):
CLIP-I, CLIP-T, DINO.

Mean cosine similarities of embeddings, from models in local folders; nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch.nn import functional as F
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, CLIPModel


class Clip:
    """CLIP from the folder `path`."""

    def __init__(self, path: Path) -> None:
        self._model = CLIPModel.from_pretrained(path).eval()
        self._images = AutoImageProcessor.from_pretrained(path)
        self._tokens = AutoTokenizer.from_pretrained(path)

    @torch.no_grad()
    def pictures(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """(N, D) unit vectors."""
        pixels = self._images(list(pictures), return_tensors="pt")["pixel_values"]
        return F.normalize(_pooled(self._model.get_image_features(pixel_values=pixels)), dim=-1)

    @torch.no_grad()
    def prompts(self, prompts: Sequence[str]) -> torch.Tensor:
        """(N, D) unit vectors."""
        tokens = self._tokens(list(prompts), padding=True, truncation=True, return_tensors="pt")
        features = self._model.get_text_features(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
        )
        return F.normalize(_pooled(features), dim=-1)


class Dino:
    """DINO or DINOv2 from the folder `path`."""

    def __init__(self, path: Path) -> None:
        self._model = AutoModel.from_pretrained(path).eval()
        self._images = AutoImageProcessor.from_pretrained(path)

    @torch.no_grad()
    def pictures(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """(N, D) unit vectors of the class token."""
        pixels = self._images(list(pictures), return_tensors="pt")["pixel_values"]
        return F.normalize(self._model(pixel_values=pixels).last_hidden_state[:, 0], dim=-1)


def _pooled(features: object) -> torch.Tensor:
    """transformers 5 wraps the projected features in an output object."""
    pooled = getattr(features, "pooler_output", features)
    assert isinstance(pooled, torch.Tensor)
    return pooled


def mean_of_pairs(left: torch.Tensor, right: torch.Tensor) -> float:
    """Mean cosine similarity of every row of `left` to every row of `right`."""
    return float((left @ right.T).mean())


def mean_of_rows(left: torch.Tensor, right: torch.Tensor) -> float:
    """Mean cosine similarity of row k to row k."""
    return float((left * right).sum(-1).mean())
