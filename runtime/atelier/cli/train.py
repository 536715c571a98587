"""`atelier train dreambooth`: the command line of training, made from `TrainOptions`, and of
evaluation."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from atelier.errors import AtelierError
from atelier_training.dreambooth.options import TrainOptions

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Teach a checkpoint a subject from a few pictures.",
)


def from_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give `command` one option for each field of `TrainOptions`, in front of its own
    parameters."""
    own = inspect.signature(command, eval_str=True).parameters.values()
    context = [p for p in own if p.annotation is typer.Context]
    rest = [p for p in own if p.annotation is not typer.Context and p.kind is not p.VAR_KEYWORD]
    options = [_parameter(name, field) for name, field in TrainOptions.model_fields.items()]
    setattr(command, "__signature__", inspect.Signature([*context, *options, *rest]))  # noqa: B010
    return command


def _parameter(name: str, field: FieldInfo) -> inspect.Parameter:
    kind: Any = field.annotation
    if get_origin(kind) in (Union, UnionType):
        kind = next(part for part in get_args(kind) if part is not type(None))
    if get_origin(kind) is tuple:
        kind = str
    shown = (
        ""
        if field.is_required() or field.default in (None, "", ())
        else f" [default: {_word(field.default)}]"
    )
    needed = " [required]" if field.is_required() else ""
    option = typer.Option(help=f"{field.description or ''}{shown}{needed}", show_default=False)
    return inspect.Parameter(
        name,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        default=None,
        annotation=Annotated[kind | None, option],
    )


def _word(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def parse(values: dict[str, Any]) -> TrainOptions:
    """Options from the command line's strings; lists are split by |."""
    prompts = values.get("validation_prompts")
    if prompts is not None:
        values = values | {"validation_prompts": tuple(part.strip() for part in prompts.split("|"))}
    return TrainOptions.parse(**values)


@app.callback(invoke_without_command=True)
@from_options
def train(
    context: typer.Context,
    check: Annotated[
        bool, typer.Option("--check", help="Check everything, print the memory estimate, and stop.")
    ] = False,
    **values: Any,
) -> None:
    """Train, or continue a run that was stopped: the same options on the same output folder."""
    if context.invoked_subcommand:
        return
    options = parse(values)
    from atelier_training.dreambooth import train as training

    if check:
        said = "\n".join(training.check(options).estimate.lines())
    else:
        result = training.train(options)
        said = (
            f"{result.path}: {result.steps} steps in {result.seconds:.0f} s,"
            f" {result.trained_parameters:,} weights"
        )
    if os.environ.get("RANK", "0") == "0":
        typer.echo(said)


@app.command()
def evaluate(
    trained: Annotated[Path, typer.Argument(help="Output folder of a training.")],
    questions: Annotated[
        Path, typer.Argument(help="JSON file with the prompts; see docs/fine-tuning.md.")
    ],
    output: Annotated[Path, typer.Option(help="Folder for scores.json and the contact sheet.")],
    model: Annotated[Path, typer.Option(help="The checkpoint that was trained on.")],
    data: Annotated[
        Path | None, typer.Option(help="Pictures of the subject, for CLIP-I and DINO.")
    ] = None,
    clip: Annotated[
        Path | None, typer.Option(help="Folder of a CLIP model, for CLIP-I and CLIP-T.")
    ] = None,
    dino: Annotated[Path | None, typer.Option(help="Folder of a DINO model.")] = None,
) -> None:
    """Score a training and draw its contact sheet."""
    from atelier_training.dreambooth.evaluate import Judges, evaluate_training
    from atelier_training.dreambooth.questions import Questions

    scores = evaluate_training(
        model, trained, Questions.read(questions), output, Judges(data, clip, dino)
    )
    for name, value in scores.items():
        typer.echo(f"{name:<24} {value:.3f}")


@app.command()
def modelcar(
    trained: Annotated[Path, typer.Argument(help="Output folder of a training.")],
    folder: Annotated[
        Path, typer.Argument(help="New folder for the image, in the form of an OCI image layout.")
    ],
    name: Annotated[str, typer.Option(help="Tag of the image, and name of the adapter in it.")],
    base: Annotated[
        Path | None, typer.Option(help="Image layout that brings a shell, which oci:// needs.")
    ] = None,
) -> None:
    """Make a container image of a training, without a daemon; skopeo copies it into a registry."""
    from atelier_training.dreambooth.modelcar import write_modelcar

    typer.echo(write_modelcar(trained, name, folder, base))


if __name__ == "__main__":  # what `torchrun -m` and `accelerate launch -m` start on each GPU
    try:
        app()
    except AtelierError as error:
        sys.exit(f"atelier: {error}")
