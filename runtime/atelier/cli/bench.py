"""`atelier bench`: measures servers, compares two, compares two results."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from atelier.bench.load import OfferedLoad, make_load
from atelier.bench.record import Record
from atelier.bench.result import BenchResult
from atelier.bench.session import BenchWish, Session
from atelier.bench.slo import Slo
from atelier.errors import SettingsError

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Measure a server, or two side by side. `bench compare A.json B.json` compares results.",
)
compare_app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
Numbers = Annotated[str, typer.Option(help="One number, or several with commas between.")]


@app.command()
def bench(
    urls: Annotated[list[str], typer.Argument(metavar="URL [URL_B]", help="One, or two for A/B.")],
    model: Annotated[str, typer.Option(help="Served name; empty: the first.")] = "",
    api_key: Annotated[str, typer.Option(envvar="OPENAI_API_KEY", show_envvar=True)] = "",
    kind: Annotated[str, typer.Option(help="auto, text or pictures.")] = "auto",
    scenario: Annotated[str, typer.Option(help="chat, completion, tools or json.")] = "chat",
    users: Annotated[str, typer.Option(help="Closed loop: 1,2,4 is three levels.")] = "",
    rate: Annotated[str, typer.Option(help="Open loop: requests a second, Poisson.")] = "",
    burst: Annotated[int, typer.Option(help="Requests that begin together.")] = 1,
    trace: Annotated[Path | None, typer.Option(help="JSON lines in Mooncake's form.")] = None,
    requests: Annotated[int, typer.Option(help="Most requests of a level.")] = 100,
    seconds: Annotated[float, typer.Option(help="None is begun later in a level.")] = 60,
    warmup: Annotated[int, typer.Option(help="Requests before each level, not counted.")] = 4,
    timeout: Annotated[float, typer.Option(help="Seconds until a request is given up.")] = 600,
    prompt_tokens: Annotated[str, typer.Option(help="Lengths, taken in turn.")] = "128",
    output_tokens: Annotated[int, typer.Option(help="Length of answers.")] = 64,
    shared_prefix: Annotated[int, typer.Option(help="Tokens that prompts share.")] = 0,
    prefixes: Annotated[int, typer.Option(help="How many different ones.")] = 1,
    turns: Annotated[int, typer.Option(help="Turns of a conversation.")] = 1,
    sizes: Annotated[str, typer.Option(help="Of pictures, taken in turn.")] = "128x128",
    steps: Annotated[str, typer.Option(help="Of pictures, taken in turn.")] = "20",
    previews: Annotated[int, typer.Option(help="Of each picture.")] = 0,
    seed: int = 0,
    slo: Annotated[str, typer.Option(help="Such as ttft=500ms,itl=50ms: counts goodput.")] = "",
    saturate: Annotated[
        bool, typer.Option("--saturate", help="Double the load until full.")
    ] = False,
    aiperf: Annotated[Path | None, typer.Option(help="Program that makes the requests.")] = None,
    repeat: Annotated[Path | None, typer.Option(help="Take the loads of a result.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the result here.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write the report here.")] = None,
) -> None:
    """Measure one server, or compare two with interleaved requests."""
    if len(urls) > 2:
        raise SettingsError(f"{len(urls)} URLs were given: one is measured, two are compared")
    fields: dict[str, Any] = {
        "kind": kind, "scenario": scenario, "burst": burst, "trace": trace, "requests": requests,
        "seconds": seconds, "warmup": warmup, "timeout": timeout, "prompt_tokens": prompt_tokens,
        "output_tokens": output_tokens, "shared_prefix": shared_prefix, "prefixes": prefixes,
        "turns": turns, "sizes": sizes, "steps": steps, "previews": previews, "seed": seed,
    }  # fmt: skip
    loads = repeated(repeat) if repeat else levels(fields, users, rate)
    wish = BenchWish(
        urls, loads, model, api_key, Slo.parse(slo), saturate, aiperf, ["atelier", *_told()]
    )
    result = asyncio.run(_run(wish))
    _give(result, json, html)
    if not any(level.figures.e2e for level in result.levels):
        raise typer.Exit(1)


def _told() -> list[str]:
    """The command line as it was given, without keys."""
    words = list(sys.argv[1:])
    for place, word in enumerate(words):
        if word.startswith("--api-key="):
            words[place] = "--api-key=..."
        elif word == "--api-key" and place + 1 < len(words):
            words[place + 1] = "..."
    return words


def levels(fields: dict[str, Any], users: str, rate: str) -> list[OfferedLoad]:
    """A load for each number of users or rate.

    Raises:
        SettingsError: a field is wrong, or both are given.
    """
    if users and rate:
        raise SettingsError("--users and --rate exclude each other: a closed or an open loop")
    name, text = ("rate", rate) if rate else ("users", users)
    values = [part.strip() for part in text.split(",") if part.strip()]
    if not values:
        return [make_load(fields)]
    return [make_load(fields | {name: value}) for value in values]


def repeated(path: Path) -> list[OfferedLoad]:
    """The loads of a result, each once."""
    from atelier.bench.result import read

    found: list[OfferedLoad] = []
    for level in read(path).levels:
        if level.load not in found:
            found.append(level.load)
    return found


async def _run(wish: BenchWish) -> BenchResult:
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("{task.fields[failed]}", style="red"),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        failed = 0

        def tell(records: list[Record]) -> None:
            nonlocal failed
            failed += sum(not record.ok for record in records)
            told = f"{failed} failed" if failed else ""
            progress.update(task, advance=len(records), failed=told)

        session = Session(wish, tell)
        total = None if wish.saturate or wish.tool else session.expected
        task = progress.add_task("requests", total=total, failed="")
        return await session.run()


def _give(result: BenchResult, json: Path | None, html: Path | None) -> None:
    from atelier.bench.tables import show

    console = Console()
    console.width = max(console.width, 120) if not console.is_terminal else console.width
    show(result, console)
    if json:
        json.parent.mkdir(parents=True, exist_ok=True)
        json.write_text(result.model_dump_json(indent=1))
        console.print(f"{json}: the result")
    if html:
        from atelier.bench.page import page

        html.parent.mkdir(parents=True, exist_ok=True)
        html.write_text(page(result))
        console.print(f"{html}: the report")


@compare_app.command()
def compare(
    a: Annotated[Path, typer.Argument(help="A result of atelier bench.")],
    b: Annotated[Path, typer.Argument(help="Another, of the same load.")],
    html: Annotated[Path | None, typer.Option(help="Write the report here.")] = None,
) -> None:
    """Compare two results that were measured apart."""
    from atelier.bench.apart import compared

    _give(compared(a, b), None, html)


def main(arguments: list[str]) -> None:
    """`bench compare` is a command of its own; all else is a run."""
    if arguments[:1] == ["compare"]:
        compare_app(arguments[1:], prog_name="atelier bench compare")
    else:
        app(arguments or ["--help"], prog_name="atelier bench")
