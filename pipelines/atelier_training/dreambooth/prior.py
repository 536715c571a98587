"""Class pictures for prior preservation: what the model draws for the class before it learns the
subject."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from atelier_training.dreambooth.data import TrainingPicture, measure, picture_files
from atelier_training.dreambooth.families import Family
from atelier_training.dreambooth.options import TrainOptions
from atelier_training.dreambooth.samples import Style, Wish, draw

AT_ONCE = 32  # pictures lost when a run is killed


def ensure_class_pictures(
    family: Family, options: TrainOptions, device: torch.device, dtype: torch.dtype
) -> list[TrainingPicture]:
    """The class pictures in `options.class_folder`, after the missing ones were generated.

    Picture k has prompt k modulo their number and seed `options.seed` + k, so a run that was killed
    continues with the same pictures. A folder that holds enough pictures is taken as it is.
    """
    if not options.with_prior:
        return []
    folder, prompts = options.class_folder, options.class_prompts
    folder.mkdir(parents=True, exist_ok=True)
    missing = options.class_pictures - len(picture_files(folder, "class_data"))
    names = (folder / f"class-{index:05d}.png" for index in range(options.class_pictures))
    wanted = [(index, path) for index, path in enumerate(names) if not path.exists()][
        : max(0, missing)
    ]
    if wanted:
        pipeline = family.load(family.components, dtype).to(device)
        side = options.resolution
        style = Style(
            options.class_steps,
            options.class_guidance,
            (side, side),
            text_tokens=options.text_tokens,
        )
        for start in range(0, len(wanted), AT_ONCE):
            part = wanted[start : start + AT_ONCE]
            wishes = [
                Wish(prompts[index % len(prompts)], options.seed + index) for index, _ in part
            ]
            for (_, path), wish, picture in zip(
                part, wishes, draw(pipeline, wishes, style), strict=True
            ):
                _keep(path, picture, wish.prompt)
    chosen = picture_files(folder, "class_data")[: options.class_pictures]
    return [
        TrainingPicture(path, *measure(path, options.resolution), _caption(path, prompts[0]))
        for path in chosen
    ]


def _keep(path: Path, picture: Image.Image, prompt: str) -> None:
    """Caption first, then the picture under its final name: a picture that is there is whole."""
    path.with_suffix(".txt").write_text(prompt + "\n", encoding="utf-8")
    part = path.with_suffix(".part")
    picture.save(part, format="PNG")
    part.rename(path)


def _caption(path: Path, default: str) -> str:
    sidecar = path.with_suffix(".txt")
    return sidecar.read_text(encoding="utf-8").strip() if sidecar.is_file() else default
