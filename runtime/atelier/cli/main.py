"""The command line: serve, generate, doctor, fetch, settings, inspect, mcp."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from atelier import __version__, logs
from atelier.cli.extras import advice
from atelier.errors import AtelierError
from atelier.settings import load_settings
from atelier.sources.kind import kind_at_hand
from atelier.workers import handle as workers

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help=(
        "Serve diffusion pipelines and language models. `atelier settings` lists the environment"
        " variables."
    ),
)

KSERVE_OPTIONS = {"allow_extra_args": True, "ignore_unknown_options": True}
Source = Annotated[str, typer.Option("--model", "-m", help="The same as MODEL_ID.")]


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"atelier {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print it and exit."
        ),
    ] = False,
) -> None:
    pass


@app.command(context_settings=KSERVE_OPTIONS)
def serve(
    context: typer.Context,
    model_dir: Annotated[str, typer.Option("--model_dir", help="The same as MODEL_ID.")] = "",
    model_name: Annotated[str, typer.Option("--model_name", help="The same as MODEL_NAME.")] = "",
) -> None:
    """Serve the model. KServe's options work too: --http_port, --grpc_port, --enable_grpc,
    --ssl_certfile, ..."""
    settings = load_settings(model_id=model_dir or None, model_name=model_name or None)
    logs.set_up(settings)
    if settings.engine == "transformers":
        workers.prepare(kind_at_hand(settings))
        from atelier.workers import ahead

        ahead.begin(settings)
    from atelier.serving.server import serve as run

    raise typer.Exit(run(settings, context.args))


@app.command()
def generate(
    prompt: str,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="PNG, JPEG or WebP, by its ending.")
    ],
    model: Source = "",
    negative_prompt: str | None = None,
    steps: Annotated[int | None, typer.Option(help="num_inference_steps.")] = None,
    guidance_scale: float | None = None,
    width: int | None = None,
    height: int | None = None,
    seed: int | None = None,
) -> None:
    """Draw one picture without a server."""
    settings = load_settings(model_id=model or None)
    logs.set_up(settings)
    from atelier.cli.generate import draw_to_file

    fields = {
        "prompt": prompt,
        "negative_prompt": negative_prompt,
        "num_inference_steps": steps,
        "guidance_scale": guidance_scale,
        "width": width,
        "height": height,
        "seed": seed,
    }
    seed = draw_to_file(settings, fields, output)
    typer.echo(f"{output} (seed {seed})")


@app.command()
def doctor(model: Source = "") -> None:
    """Say what hardware is here, what the checkpoint holds, what the memory plan would be, and what
    is misconfigured."""
    from atelier.cli.doctor import examine

    report = examine(load_settings(model_id=model or None))
    typer.echo(report.text())
    raise typer.Exit(1 if report.problems else 0)


@app.command()
def fetch(source: str, folder: Annotated[Path | None, typer.Argument()] = None) -> None:
    """Bring the weights of SOURCE (s3:// or Hub id) into FOLDER, or to where `serve` looks for
    them."""
    from atelier.sources import fetch as bring

    typer.echo(bring(load_settings(model_id=source), into=folder))


@app.command()
def settings(
    markdown: Annotated[
        bool, typer.Option("--markdown", help="As Markdown tables of defaults.")
    ] = False,
    into: Annotated[
        Path | None, typer.Option(help="Renew those tables in this file, between its markers.")
    ] = None,
) -> None:
    """Print the environment variables by group: default, current value and meaning."""
    from atelier.cli import settings_table as tables

    if into:
        typer.echo(f"{into}: {'renewed' if tables.renew(into) else 'current'}")
    elif markdown:
        typer.echo(tables.markdown())
    else:
        _print_settings()


def _print_settings() -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from atelier.cli.settings_table import by_group

    table = Table("Variable", "Default", "Now", "Meaning", box=box.SIMPLE_HEAD)
    for title, group in by_group(load_settings()):
        table.add_section()
        table.add_row(f"[bold]{title}[/bold]")
        for row in group:
            now = row.value if row.value != row.default else ""
            table.add_row(*map(escape, (row.variable, row.default, now, row.help)))
    console = Console()
    console.width = max(console.width, 140) if not console.is_terminal else console.width
    console.print(table)


@app.command()
def inspect(
    picture: Annotated[Path, typer.Argument(help="PNG, JPEG or WebP.")],
    trust: Annotated[
        Path | None, typer.Option(help="PEM file of the authorities that a signer must come from.")
    ] = None,
) -> None:
    """Print a picture's marks and verify its signature.

    Exit codes: 0 marks are there, and a signature holds; 1 the file cannot be read; 3 no marks;
    4 the signature does not hold, or not by --trust; 5 it could not be verified."""
    from atelier.provenance.inspection import inspect as look

    report = look(picture, trust)
    typer.echo(report.text())
    raise typer.Exit(report.code)


@app.command()
def profiles() -> None:
    """List the ready sets of values that PROFILE chooses from."""
    from atelier.profiles import names, read

    for name in names():
        profile = read(name)
        typer.echo(f"{name:26} {profile.gpus} x {profile.gpu_gib} GiB  {profile.description}")


@app.command()
def mcp(
    http: Annotated[
        bool, typer.Option("--http", help="Serve streamable HTTP instead of stdio.")
    ] = False,
    host: Annotated[str, typer.Option(help="Address to listen on, with --http.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on, with --http.")] = 8090,
    endpoint: Annotated[str, typer.Option(help="The same as MCP_ENDPOINT.")] = "",
    store: Annotated[str, typer.Option(help="The same as MCP_STORE.")] = "",
) -> None:
    """Give assistants tools to draw with, over the Model Context Protocol."""
    settings = load_settings(mcp_endpoint=endpoint or None, mcp_store=store or None)
    logs.set_up(settings)
    from atelier.agents.running import run

    run(settings, http, host, port)


@app.command()
def studio(
    endpoint: Annotated[
        str, typer.Option("--endpoint", "-e", help="URLs of servers, separated by commas.")
    ],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 7860,
) -> None:
    """Serve the studio: a page where people draw, edit and chat, on servers of ours."""
    logs.set_up(load_settings())
    from atelier.cli.studio import run_studio

    run_studio(endpoint.split(","), host, port)


PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


@app.command(context_settings=PASS_ON)
def deploy(context: typer.Context) -> None:
    """Make, follow and remove endpoints on a cluster: render, apply, status, logs, delete."""
    from atelier.cli.deploy import app as deploy_app

    deploy_app(context.args, prog_name="atelier deploy")


@app.command(context_settings=PASS_ON)
def bench(context: typer.Context) -> None:
    """Measure a server, or two side by side; ours or any OpenAI-compatible one."""
    from atelier.cli.bench import main as run

    run(context.args)


@app.command()
def tune(
    plan: Annotated[Path, typer.Argument(help="YAML: start, space, load, goal, bounds.")],
    out: Annotated[Path, typer.Option(help="Folder of the search; the same goes on.")] = Path(
        "out/tune"
    ),
    trials: Annotated[int | None, typer.Option(help="Instead of the plan's.")] = None,
    api_key: Annotated[str, typer.Option(envvar="OPENAI_API_KEY", show_envvar=True)] = "",
) -> None:
    """Search the settings that make a load fastest; killed at any time, it goes on."""
    from atelier.cli.tune import run

    raise typer.Exit(0 if run(plan, out, trials, api_key) else 1)


@app.command()
def warm(
    url: str,
    prompt_tokens: Annotated[str, typer.Option(help="Lengths, shortest first.")] = "128,512,2048",
    output_tokens: Annotated[int, typer.Option(help="Length of each answer.")] = 8,
    wait: Annotated[bool, typer.Option("--wait", help="Until the server is ready.")] = False,
    wait_seconds: Annotated[float, typer.Option(help="At most.")] = 3600,
    model: Annotated[str, typer.Option(help="Served name; empty: the first.")] = "",
    api_key: Annotated[str, typer.Option(envvar="OPENAI_API_KEY", show_envvar=True)] = "",
) -> None:
    """Run prompts of growing length through an OpenAI-compatible server."""
    from atelier.bench.warming import WarmTarget
    from atelier.cli.warm import run

    run(WarmTarget(url, api_key, model), prompt_tokens, output_tokens, wait_seconds if wait else 0)


@app.command(context_settings=PASS_ON)
def train(context: typer.Context) -> None:
    """Teach a checkpoint a subject from a few pictures: train dreambooth."""
    from atelier.cli.train import app as dreambooth_app

    trainers = typer.Typer(no_args_is_help=True, help="Fine-tune a checkpoint.")
    trainers.add_typer(dreambooth_app, name="dreambooth")
    trainers(context.args, prog_name="atelier train")


@app.command(context_settings=PASS_ON)
def pipeline(context: typer.Context) -> None:
    """Compile the fine-tuning pipeline and run it on a Data Science Pipelines server."""
    from atelier.cli.pipeline import app as pipeline_app

    pipeline_app(context.args, prog_name="atelier pipeline")


def main() -> None:
    """Run the command line; an error of ours, or an extra that is not installed, is a line on
    standard error and exit code 1."""
    try:
        app()
    except ModuleNotFoundError as error:
        if line := advice(error, command=sys.argv[1]):
            sys.exit(f"atelier: {line}")
        raise
    except AtelierError as error:
        sys.exit(f"atelier: {error}")
