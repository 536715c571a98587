"""The pipeline's steps as kfp components. Each only moves paths and parameters to a function of
this package.

A component's body is shipped as source and runs alone, so it imports what it needs itself.
"""
# No `from __future__ import annotations`: kfp reads the annotations as types.

import os

from kfp import dsl

from atelier import __version__

IMAGE = os.environ.get("ATELIER_IMAGE", f"quay.io/atelier/atelier:{__version__}")
STEP = {"base_image": IMAGE, "install_kfp_package": False}


@dsl.component(**STEP)
def get_data(source: str, sha256: str, pictures: dsl.Output[dsl.Dataset]) -> None:
    """The subject's pictures as a dataset."""
    from pathlib import Path

    from atelier_training.dreambooth.fetch import get_data

    pictures.metadata["pictures"] = get_data(source, Path(pictures.path), sha256)
    pictures.metadata["source"] = source


@dsl.component(**STEP)
def generate_class_pictures(options: dict, class_pictures: dsl.Output[dsl.Dataset]) -> None:
    """What the base model draws for the class prompts."""
    from pathlib import Path

    from atelier_training.dreambooth.tasks import class_pictures as generate

    class_pictures.metadata["pictures"] = generate(options, Path(class_pictures.path))


@dsl.component(**STEP)
def train(
    options: dict,
    workspace: str,
    pictures: dsl.Input[dsl.Dataset],
    class_pictures: dsl.Input[dsl.Dataset],
    trained: dsl.Output[dsl.Model],
    figures: dsl.Output[dsl.Metrics],
) -> None:
    """Train in the workspace, from which a retry or a run of equal options continues, and hand the
    result on as a model."""
    from pathlib import Path

    from atelier_training.dreambooth.tasks import train

    folders = Path(pictures.path), Path(class_pictures.path), Path(workspace)
    result = train(options, *folders, Path(trained.path))
    for name, value in result.items():
        figures.log_metric(name, value)
    trained.metadata["framework"] = "diffusers"


@dsl.component(**STEP)
def evaluate(
    options: dict,
    questions: dict,
    judges: dict,
    pictures: dsl.Input[dsl.Dataset],
    trained: dsl.Input[dsl.Model],
    scores: dsl.Output[dsl.Metrics],
    sheet: dsl.Output[dsl.HTML],
) -> dict:
    """Scores as metrics and as a value, and the contact sheet."""
    from pathlib import Path

    from atelier_training.dreambooth.tasks import evaluate

    measured = evaluate(
        options, questions, judges, Path(pictures.path), Path(trained.path), Path(sheet.path)
    )
    for name, value in measured.items():
        scores.log_metric(name, value)
    return measured


@dsl.component(**STEP)
def check_quality(scores: dict, gate: str) -> None:
    """Fails, and with it the run, if a score does not reach its bound."""
    from atelier_training.dreambooth.gate import require

    require(scores, gate)


@dsl.component(**STEP)
def publish(destination: str, trained: dsl.Input[dsl.Model], sheet: dsl.Input[dsl.HTML]) -> dict:
    """Store the training under its version; returns where."""
    from pathlib import Path

    from atelier_training.dreambooth.tasks import publish

    return publish(Path(trained.path), destination, Path(sheet.path))


@dsl.component(**STEP)
def modelcar(
    published: dict, base: str, trained: dsl.Input[dsl.Model], image: dsl.Output[dsl.Artifact]
) -> None:
    """The version as a container image, in the form of an OCI image layout."""
    from pathlib import Path

    from atelier_training.dreambooth.tasks import modelcar

    image.metadata["digest"] = modelcar(Path(trained.path), published, base, Path(image.path))
    image.metadata["version"] = published["version"]


@dsl.component(**STEP)
def register(published: dict, registry: str, name: str, connection: str) -> None:
    """Enter the version into an OpenShift AI model registry."""
    from atelier_training.dreambooth.registry import register

    register(registry, name, published, connection)


@dsl.component(**STEP)
def deploy(
    published: dict,
    endpoint: str,
    base: str,
    connection: str,
    gpu: str,
    namespace: str,
    prompt: str,
    picture: dsl.Output[dsl.Artifact],
) -> str:
    """Make an endpoint of the version, wait until it is ready, and keep a picture that it drew;
    returns its URL."""
    from pathlib import Path

    from atelier_training.dreambooth.tasks import deploy

    return deploy(published, endpoint, base, connection, gpu, namespace, prompt, Path(picture.path))


@dsl.component(**STEP)
def report(status: dsl.PipelineTaskFinalStatus) -> None:
    """Runs at the end, whatever happened: says how the run ended."""
    error = f": {status.error_message}" if status.error_message else ""
    print(f"the run ended {status.state}{error}")
