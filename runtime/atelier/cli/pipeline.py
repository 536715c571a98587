"""`atelier pipeline compile | upload | run | watch`: the pipeline on a Data Science Pipelines
server.

kfp lives in an environment of its own (`environment.sh` says why), so every command starts
`atelier_training.client` there.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from atelier.errors import StartError

app = typer.Typer(
    no_args_is_help=True, help="Compile the Dreambooth pipeline and run it on a server."
)

PLACES = (Path(".engines/kfp/bin/python"), Path("/opt/kfp/bin/python"))

Host = Annotated[
    str, typer.Option(envvar="KFP_HOST", help="URL of the Data Science Pipelines server.")
]
CaFile = Annotated[
    str, typer.Option(envvar="KFP_CA_FILE", help="CA file for a private certificate.")
]
Name = Annotated[str, typer.Option(help="Name of the pipeline on the server.")]


def kfp_python() -> str:
    """The interpreter that has kfp: this one, KFP_PYTHON, or one of the usual places.

    Raises:
        StartError: none has it.
    """
    if find_spec("kfp"):
        return sys.executable
    for place in (Path(os.environ.get("KFP_PYTHON", "")), *PLACES):
        if place.is_file():
            return str(place)
    raise StartError(
        "kfp is not installed: run make kfp, or set KFP_PYTHON to an interpreter that has it"
    )


def _start(*arguments: str) -> None:
    """Run `atelier_training.client` with kfp; its exit code becomes ours."""
    paths = [path for path in sys.path if path]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    raise typer.Exit(
        subprocess.run(
            [kfp_python(), "-m", "atelier_training.client", *arguments], env=environment
        ).returncode
    )


@app.command("compile")
def compile_command(
    folder: Annotated[Path, typer.Argument(help="Where the YAML files go.")],
) -> None:
    """Write pipeline.yaml, and pipeline-2.14.yaml for servers before 2.15."""
    _start("compile", str(folder))


@app.command()
def upload(host: Host, name: Name = "dreambooth", ca_file: CaFile = "") -> None:
    """Make the pipeline on the server, or add a version to it. The bearer token is the variable
    KFP_TOKEN."""
    _start("upload", host, ca_file, name)


@app.command()
def run(
    parameters: Annotated[Path, typer.Argument(help="JSON file with the pipeline's parameters.")],
    host: Host,
    name: Name = "dreambooth",
    ca_file: CaFile = "",
    watch: Annotated[bool, typer.Option(help="Follow the run to its end.")] = True,
) -> None:
    """Start a run of the newest version on the server."""
    _start("run", host, ca_file, name, str(parameters), "watch" if watch else "leave")


@app.command()
def watch(
    run_id: Annotated[str, typer.Argument(help="Id of a run.")], host: Host, ca_file: CaFile = ""
) -> None:
    """Follow a run: every change of a step is a line; the exit code is 0 if it succeeded."""
    _start("watch", host, ca_file, run_id)
