"""A result as one HTML file that opens without a network: tables, plots as SVG, no script."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from atelier.bench import plots
from atelier.bench.comparison import Comparison
from atelier.bench.result import BenchResult, Measured
from atelier.bench.tables import SHARES, effect_cells, latencies, rates

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1150px; margin: 2em auto; padding: 0 1em;
  color: #1b1b1b; }
h1 { margin-bottom: 0; } h2 { margin-top: 2em; border-bottom: 1px solid #ddd; }
table { border-collapse: collapse; margin: 1em 0; } svg { max-width: 100%; height: auto; }
th, td { padding: .25em .8em; text-align: right; border-bottom: 1px solid #eee; }
th:first-child, td:first-child, td.text { text-align: left; }
.note { background: #fff4d6; padding: .4em .8em; margin: .4em 0; }
.small { color: #555; font-size: 13px; }
"""
TIMELINES = 6
"""Levels that are shown request by request; a saturation search has more than anybody reads."""


def page(result: BenchResult) -> str:
    """The whole report."""
    title = " against ".join(f"{server.model} at {server.url}" for server in result.servers)
    made = f"{result.created:%Y-%m-%d %H:%M} UTC, atelier {result.client.atelier}"
    parts = [f"<h1>{escape(title)}</h1><p class=small>{escape(made)}</p>"]
    parts += [f"<p class=note>{escape(note)}</p>" for note in result.notes]
    for comparison in result.comparisons:
        parts += [f"<h2>A/B at {escape(comparison.load)}</h2>", *_compared(comparison)]
    if found := result.saturation:
        parts.append(
            f"<h2>Saturation</h2><p>{escape(found.load)}: {found.throughput:.2f}"
            f" {escape(found.unit)}. {escape(found.reason)}.</p>"
        )
    if result.levels:
        parts += ["<h2>Latency</h2>", _latencies(result.levels)]
        if len({level.load.title for level in result.levels}) > 1:
            parts.append(plots.latency_over_load(result.levels))
        parts += [plots.distributions(result.levels)]
        parts += ["<h2>Rates and counts</h2>", *map(_rates, result.levels)]
        parts.append("<h2>Timeline</h2>")
        parts += [plots.timeline(level) for level in result.levels[:TIMELINES]]
    parts += ["<h2>How to repeat it</h2>", *_conditions(result)]
    body = "\n".join(parts)
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(title)}</title>"
        f"<style>{STYLE}</style><body>\n{body}\n</body></html>\n"
    )


def table(head: list[str], rows: list[list[str]]) -> str:
    """An HTML table of texts."""
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    lines = ("".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows)
    return f"<table><tr>{top}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _compared(comparison: Comparison) -> Iterator[str]:
    how = (
        "The same requests were asked of both, block by block, in an order drawn by chance."
        if comparison.interleaved
        else "The two runs were made apart: what the machine did meanwhile is in the difference."
    )
    yield f"<p>{how}</p>{plots.ratios(comparison)}"
    rows = [[*effect_cells(effect), str(effect.rounds)] for effect in comparison.effects]
    yield table(["", "A", "B", "B / A", "B - A", "verdict", "rounds"], rows)


def _latencies(levels: list[Measured]) -> str:
    rows = [[level.title, *row] for level in levels for row in latencies(level)]
    return table(["load", "ms", *SHARES], rows)


def _rates(level: Measured) -> str:
    return table([level.title, ""], [list(row) for row in rates(level)])


def _conditions(result: BenchResult) -> Iterator[str]:
    client = result.client
    versions = ", ".join(f"{name} {version}" for name, version in client.libraries.items())
    rows = [
        ["command", " ".join(result.command)],
        ["client", f"{client.processor}, {client.cpus} CPUs, {client.machine}"],
        ["libraries", f"Python {client.python}, {versions}"],
    ]
    rows += [[f"server {one.arm}", f"{one.url} {one.facts}"] for one in result.servers]
    rows += [
        [f"load {level.arm}", str(level.load.model_dump(exclude_defaults=True, mode="json"))]
        for level in result.levels
    ]
    yield table(["what", "value"], rows).replace("<td>", "<td class=text>")
    yield "<p class=small>The JSON beside this page has every request and all of this.</p>"
