"""Figures as tables for a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from rich import box
from rich.console import Console
from rich.table import Table

from atelier.bench.comparison import Comparison, Effect
from atelier.bench.figures import Distribution
from atelier.bench.result import BenchResult, Measured

TITLES = {
    "ttft": "time to first token",
    "itl": "inter-token latency",
    "tpot": "time per output token",
    "preview": "time to first preview",
    "e2e": "end to end",
    "tokens_per_s": "output tokens/s",
    "megapixels_per_s": "megapixels/s",
}
"""What a metric is called where people read it."""

SHARES = ("mean", "p50", "p90", "p95", "p99")
"""What is told of a distribution, by its names there."""


def show(result: BenchResult, console: Console) -> None:
    """Print everything but the records."""
    for server in result.servers:
        console.print(f"[bold]{server.arm}[/bold] {server.url}, model {server.model}")
    console.print(_latencies(result.levels))
    console.print(_rates(result.levels))
    for comparison in result.comparisons:
        show_comparison(comparison, console)
    if found := result.saturation:
        console.print(
            f"saturation: {found.load}, {found.throughput:.2f} {found.unit} ({found.reason})"
        )
    for note in result.notes:
        console.print(f"note: {note}", style="yellow", markup=False)


def _latencies(levels: list[Measured]) -> Table:
    table = Table("load", "latency, ms", box=box.SIMPLE_HEAD)
    for name in SHARES:
        table.add_column(name, justify="right")
    return _filled(table, levels, latencies)


def _rates(levels: list[Measured]) -> Table:
    return _filled(Table("load", "what", "", box=box.SIMPLE_HEAD), levels, rates)


def _filled(
    table: Table, levels: list[Measured], rows: Callable[[Measured], Iterable[Iterable[str]]]
) -> Table:
    """The table with the rows of each level, whose title stands before the first of them."""
    for level in levels:
        told = level.title
        for row in rows(level):
            table.add_row(told, *row)
            told = ""
    return table


def latencies(level: Measured) -> Iterator[list[str]]:
    """Each latency that was seen: its name, then SHARES in milliseconds."""
    for metric in ("ttft", "itl", "tpot", "preview", "e2e"):
        found: Distribution | None = getattr(level.figures, metric)
        if found:
            yield [TITLES[metric], *(f"{1000 * getattr(found, name):.2f}" for name in SHARES)]


def rates(level: Measured) -> Iterator[tuple[str, str]]:
    """Everything that is not a latency, as pairs of name and text."""
    found = level.figures
    failed = sum(found.errors.values())
    yield "requests", f"{found.requests - failed} well, {failed} failed, in {found.seconds:.1f} s"
    for kind, count in found.errors.items():
        yield "error", f"{count} x {kind}"
    yield "requests/s", f"{found.requests_per_s:.2f}"
    if found.output_tokens_per_s is not None:
        yield "output tokens/s", f"{found.output_tokens_per_s:.1f}"
        yield "prompt tokens/s", f"{found.prompt_tokens_per_s or 0:.1f}"
    if found.cached_share is not None:
        yield "prompt tokens from cache", f"{found.cached_share:.1%}"
    if tokens := found.tokens:
        checked = f"{tokens.checked} answers counted again, {tokens.differing} differ"
        yield "tokens by usage", f"{tokens.usage} in {tokens.chunks} chunks; {checked}"
    if found.pictures_per_s is not None:
        yield "pictures/s", f"{found.pictures_per_s:.3f}"
        yield "megapixels/s", f"{found.megapixels_per_s or 0:.4f}"
    if found.goodput_per_s is not None:
        yield "goodput", f"{found.goodput_per_s:.2f}/s, {found.good_share or 0:.1%} of requests"


def effect_cells(effect: Effect) -> list[str]:
    """A metric of both arms: its name, A, B, the ratio, the difference, the verdict."""
    rate = effect.metric.endswith("_per_s")
    scale, unit = (1, "/s") if rate else (1000, " ms")
    return [
        TITLES[effect.metric],
        f"{scale * effect.a:.3f}{unit}",
        f"{scale * effect.b:.3f}{unit}",
        f"{effect.ratio:.3f} [{effect.ratio_low:.3f}, {effect.ratio_high:.3f}]",
        f"{scale * effect.difference:+.3f}{unit} [{scale * effect.difference_low:+.3f},"
        f" {scale * effect.difference_high:+.3f}]",
        effect.verdict,
    ]


def show_comparison(comparison: Comparison, console: Console) -> None:
    """Print the effects and what they mean."""
    how = "interleaved" if comparison.interleaved else "from runs made apart"
    table = Table(
        "metric", "a", "b", "b / a", "b - a", "verdict", box=box.SIMPLE_HEAD,
        title=f"A/B at {comparison.load}, {how}", title_justify="left",
    )  # fmt: skip
    for effect in comparison.effects:
        table.add_row(*effect_cells(effect))
    console.print(table)
    if not comparison.different:
        console.print("no difference to be seen between a and b")
