"""Everything that does not change during training, computed once: latents of all views and
embeddings of all captions.

After this neither the VAE nor frozen text encoders are needed, and none of them is on the device
while training runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from atelier_training.dreambooth.buckets import plan_views
from atelier_training.dreambooth.data import TrainingPicture
from atelier_training.dreambooth.families import Family
from atelier_training.dreambooth.families.base import Tensors
from atelier_training.dreambooth.options import TrainOptions


@dataclass(frozen=True)
class Sample:
    """One view, ready to train: `mean` and `deviation` (C, H, W) of its latents, `sizes` (0 or 6,),
    row of its caption."""

    mean: torch.Tensor
    deviation: torch.Tensor
    sizes: torch.Tensor
    caption: int
    is_class: bool

    @property
    def shape(self) -> tuple[int, int]:
        return self.mean.shape[-2], self.mean.shape[-1]


@dataclass(frozen=True)
class Cache:
    """`samples`, the distinct `captions` they point to, and the captions' embeddings unless text
    encoders are trained.

    `base_text` are the embeddings of the encoders as they came, for prior=teacher.
    """

    samples: list[Sample]
    captions: list[str]
    text: Tensors | None
    base_text: Tensors | None = None

    def to_pinned(self) -> Cache:
        """The same in page-locked memory, from which copies to a GPU do not block."""
        samples = [
            Sample(
                s.mean.pin_memory(),
                s.deviation.pin_memory(),
                s.sizes.pin_memory(),
                s.caption,
                s.is_class,
            )
            for s in self.samples
        ]
        texts = [
            None if text is None else {name: value.pin_memory() for name, value in text.items()}
            for text in (self.text, self.base_text)
        ]
        return Cache(samples, self.captions, *texts)


@torch.no_grad()
def build_cache(
    family: Family,
    options: TrainOptions,
    subject: Sequence[TrainingPicture],
    prior: Sequence[TrainingPicture],
    device: torch.device,
    dtype: torch.dtype,
) -> Cache:
    """Encode all pictures and captions on `device`, one component after the other; results stay on
    the CPU."""
    captions = sorted({picture.caption for picture in (*subject, *prior)})
    teacher = options.prior == "teacher" and bool(prior)
    cached = teacher or not options.train_text_encoder
    base_text = encode_captions(family, captions, device, dtype) if cached else None
    # In float32: SDXL's first VAE overflows in half precision, and this runs once.
    vae = family.load(["vae"], torch.float32).vae.to(device)
    samples: list[Sample] = []
    for pictures, is_class in ((subject, False), (prior, True)):
        views = plan_views(
            [(p.width, p.height) for p in pictures],
            resolution=options.resolution,
            buckets=options.buckets,
            views=1 if is_class else options.views,
            flip=options.flip and not is_class,
            seed=options.seed,
        )
        for view in views:
            picture = pictures[view.picture]
            mean, deviation = family.encode_picture(vae, to_tensor(view.cut(picture.open())))
            sizes = torch.tensor(family.size_condition(view, (picture.width, picture.height)))
            row = captions.index(picture.caption)
            samples.append(Sample(mean[0].cpu(), deviation[0].cpu(), sizes, row, is_class))
    return Cache(
        samples,
        captions,
        None if options.train_text_encoder else base_text,
        base_text if teacher else None,
    )


def encode_captions(
    family: Family, captions: Sequence[str], device: torch.device, dtype: torch.dtype
) -> Tensors:
    """Embeddings of `captions`, one row each, on the CPU."""
    pipeline = family.load(family.text_parts, dtype).to(device)
    rows = [family.encode_prompts(pipeline, [caption]) for caption in captions]
    return {name: torch.cat([row[name] for row in rows]).to("cpu", dtype) for name in rows[0]}


def to_tensor(image: Image.Image) -> torch.Tensor:
    """(1, 3, H, W) in -1..1."""
    pixels = torch.from_numpy(np.asarray(image.convert("RGB")).copy())
    return pixels.permute(2, 0, 1)[None].float() / 127.5 - 1.0
