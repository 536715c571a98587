"""What the pipeline's steps do, as plain functions over folders and JSON values; tested without
kfp."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from atelier.settings import load_settings
from atelier.sources import fetch
from atelier_training.dreambooth.card import CARD, RECORD
from atelier_training.dreambooth.options import TrainOptions

Values = dict[str, Any]


def options_from(values: Values, **folders: Any) -> TrainOptions:
    """Training options from a pipeline's parameters; `model` may be a path, a built-in name, s3://
    or a Hub id.

    kfp passes numbers in JSON, so 500 may come as 500.0; whole numbers are made whole again.
    """
    plain = {
        name: int(v) if isinstance(v, float) and v.is_integer() else v for name, v in values.items()
    }
    plain["model"] = fetch(load_settings(model_id=str(values["model"])))
    return TrainOptions.parse(**{"data": ".", "output": "."} | plain | folders)


def class_pictures(values: Values, folder: Path) -> int:
    """Generate the class pictures into `folder`; none without a class prompt."""
    from atelier_training.dreambooth.families import family_of
    from atelier_training.dreambooth.journal import quiet_libraries
    from atelier_training.dreambooth.prior import ensure_class_pictures
    from atelier_training.dreambooth.train import choose_device, choose_dtype

    folder.mkdir(parents=True, exist_ok=True)
    options = options_from(values, class_data=folder)
    family, device = family_of(options.model, options.text_tokens), choose_device(options)
    with quiet_libraries():
        return len(ensure_class_pictures(family, options, device, choose_dtype(options, device)))


def train(
    values: Values, pictures: Path, prior: Path, workspace: Path, trained: Path
) -> dict[str, float]:
    """Train in `workspace` and copy the result, without checkpoints, to `trained`; returns the
    run's figures. What a training of equal options and pictures left there, it continues."""
    from atelier_training.dreambooth.workspaces import workspace_for

    with workspace_for(values, pictures, prior, workspace) as place:
        return _train(values, pictures, prior, place, trained)


def _train(
    values: Values, pictures: Path, prior: Path, place: Path, trained: Path
) -> dict[str, float]:
    from atelier_training.dreambooth.train import train as run

    # Paths of artifacts are copied out first: they lie elsewhere when another run continues.
    data, class_data = place / "pictures", place / "class"
    for source, target in ((pictures, data), (prior, class_data)):
        shutil.copytree(source, target, dirs_exist_ok=True)
    output = place / "output"
    result = run(options_from(values, data=data, class_data=class_data, output=output))
    trained.mkdir(parents=True, exist_ok=True)
    for path in output.iterdir():
        if path.name in (CARD, RECORD) or path.suffix == ".safetensors":
            shutil.copyfile(path, trained / path.name)
    if (output / "model").is_dir():
        shutil.copytree(output / "model", trained / "model", dirs_exist_ok=True)
    return result.summary()


def evaluate(
    values: Values,
    questions: Values,
    judges: dict[str, str],
    pictures: Path,
    trained: Path,
    sheet: Path,
) -> dict[str, float]:
    """Score `trained` and write the contact page to the file `sheet`; `judges` are folders by name
    (clip, dino)."""
    from atelier_training.dreambooth.evaluate import Judges, evaluate_training
    from atelier_training.dreambooth.questions import Questions
    from atelier_training.dreambooth.sheet import HTML

    options = options_from(values)
    whole = {
        name: int(v) if isinstance(v, float) and v.is_integer() else v
        for name, v in questions.items()
    }
    folders = {name: Path(folder) for name, folder in judges.items()}
    output = sheet.with_suffix(".files")
    scores = evaluate_training(
        options.model,
        trained,
        Questions.model_validate(whole),
        output,
        Judges(pictures, **folders),
        options.device,
    )
    shutil.copyfile(output / HTML, sheet)
    return scores


def publish(trained: Path, destination: str, sheet: Path) -> dict[str, Any]:
    """Store and say where, as plain values."""
    from atelier_training.dreambooth.publish import publish as store
    from atelier_training.dreambooth.sheet import HTML

    return asdict(store(trained, destination, {HTML: sheet}))


def modelcar(trained: Path, published: Values, base: str, image: Path) -> str:
    """The published version as an image layout in the folder `image`; returns its digest."""
    from atelier_training.dreambooth.modelcar import write_modelcar

    return write_modelcar(trained, published["version"], image, Path(base) if base else None)


def deploy(
    published: Values,
    name: str,
    base: str,
    connection: str,
    gpu: str,
    namespace: str,
    prompt: str,
    picture: Path,
) -> str:
    from atelier_training.dreambooth.deploy import deploy as bring_up
    from atelier_training.dreambooth.deploy import endpoint_for
    from atelier_training.dreambooth.publish import Published

    endpoint = endpoint_for(name, Published(**published), base, connection, gpu, namespace)
    return bring_up(endpoint, prompt, picture)
