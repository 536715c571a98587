"""Plots of a result as SVG, drawn by matplotlib without a display."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from atelier.bench.comparison import Comparison
from atelier.bench.record import Record
from atelier.bench.result import Measured
from atelier.bench.saturation import throughput
from atelier.bench.tables import TITLES

COLOURS = {"a": "#2563a8", "b": "#c2571a"}
FAILED = "#b3261e"
LATENCIES = ("ttft", "tpot", "preview", "e2e")
STYLE: dict[str, Any] = {
    "font.size": 9,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "svg.hashsalt": "atelier",
}


def latency_over_load(levels: Sequence[Measured]) -> str:
    """Median and 95th percentile of every latency, and the throughput, at each level of load."""
    shown = [name for name in LATENCIES if any(getattr(one.figures, name) for one in levels)]
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(1, len(shown) + 1, figsize=(3.4 * (len(shown) + 1), 3))
        for axis, name in zip(axes, shown, strict=False):
            for arm in _arms(levels):
                own = [one for one in levels if one.arm == arm and getattr(one.figures, name)]
                for share, dash in (("p50", "-"), ("p95", "--")):
                    axis.plot(
                        [one.load.title for one in own],
                        [1000 * getattr(getattr(one.figures, name), share) for one in own],
                        dash, marker="o", ms=3, color=COLOURS[arm], label=f"{arm} {share}",
                    )  # fmt: skip
            _label(axis, TITLES[name], "offered load", "ms")
        for arm in _arms(levels):
            own = [one for one in levels if one.arm == arm]
            done = [throughput(one.figures) for one in own]
            titles = [one.load.title for one in own]
            axes[-1].plot(titles, [d[0] for d in done], "-o", ms=3, color=COLOURS[arm], label=arm)
        _label(axes[-1], "throughput", "offered load", done[0][1] if done else "")
        return as_svg(figure)


def distributions(levels: Sequence[Measured]) -> str:
    """The share of requests that were answered within a time, for every latency."""
    shown = [name for name in LATENCIES if any(getattr(one.figures, name) for one in levels)]
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(
            1, len(shown), figsize=(3.4 * len(shown), 3), squeeze=False, sharey=True
        )
        shades = plt.get_cmap("viridis")
        for axis, name in zip(axes[0], shown, strict=True):
            for place, level in enumerate(levels):
                values = sorted(1000 * value for value in _values(level.records, name))
                if not values:
                    continue
                shares = [(rank + 1) / len(values) for rank in range(len(values))]
                colour = (
                    COLOURS[level.arm] if len(_arms(levels)) > 1 else shades(place / len(levels))
                )
                axis.step(values, shares, where="post", color=colour, lw=1.2,
                          label=level.title)  # fmt: skip
            _label(axis, TITLES[name], "ms", "share of requests")
        return as_svg(figure)


def timeline(level: Measured) -> str:
    """Every request from begin to end, with its wait for the first token or preview."""
    records = level.records
    with plt.style.context(STYLE):
        height = min(6.0, 1.4 + 0.035 * len(records))
        figure, axis = plt.subplots(figsize=(10, height))
        colour = COLOURS[level.arm]
        for place, record in enumerate(records):
            first = record.ttft if record.ttft is not None else record.first_preview
            if not record.ok:
                axis.plot([record.begun, record.ended], [place, place], color=FAILED, lw=1.5)
                continue
            wait = record.seconds if first is None else first
            axis.plot([record.begun, record.begun + wait], [place, place], color=colour, lw=1.5,
                      alpha=0.35)  # fmt: skip
            axis.plot([record.begun + wait, record.ended], [place, place], color=colour, lw=1.5)
        axis.plot([], [], color=colour, alpha=0.35, label="waits for the first token or preview")
        axis.plot([], [], color=colour, label="answers")
        if any(not record.ok for record in records):
            axis.plot([], [], color=FAILED, label="failed")
        _label(axis, level.title, "seconds from the start", "request")
        return as_svg(figure)


def ratios(comparison: Comparison) -> str:
    """B / A of each metric with its interval; 1 is no difference."""
    with plt.style.context(STYLE):
        effects = comparison.effects
        figure, axis = plt.subplots(figsize=(7, 1.2 + 0.45 * len(effects)))
        for place, effect in enumerate(effects):
            seen = effect.verdict in ("a is better", "b is better")
            colour = COLOURS["b" if effect.verdict == "b is better" else "a"] if seen else "#666666"
            axis.plot([effect.ratio_low, effect.ratio_high], [place, place], color=colour, lw=3)
            axis.plot(effect.ratio, place, "o", color=colour, ms=6)
            told = f"{effect.ratio:.3f}  {effect.verdict}"
            axis.text(1.02, place, told, transform=axis.get_yaxis_transform(), va="center")
        axis.axvline(1, color="black", lw=0.8)
        axis.set_yticks(range(len(effects)), [TITLES[effect.metric] for effect in effects])
        axis.set_ylim(len(effects) - 0.5, -0.5)
        axis.set_title(f"B against A at {comparison.load}", loc="left", fontsize=10)
        axis.set_xlabel("ratio B / A, 95 % interval over all metrics together")
        return as_svg(figure)


def _values(records: Sequence[Record], name: str) -> list[float]:
    of = {
        "ttft": lambda one: one.ttft,
        "tpot": lambda one: one.tpot,
        "preview": lambda one: one.first_preview,
        "e2e": lambda one: one.seconds,
    }[name]
    return [value for record in records if record.ok and (value := of(record)) is not None]


def _arms(levels: Sequence[Measured]) -> list[str]:
    return sorted({level.arm for level in levels})


def _label(axis: Axes, title: str, x: str, y: str) -> None:
    axis.set_title(title, loc="left", fontsize=10)
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.set_ylim(bottom=0 if axis.get_ylim()[0] > 0 else None)
    if x == "offered load" and len(axis.get_xticklabels()) > 4:
        axis.tick_params("x", labelrotation=30)
    handles, _ = axis.get_legend_handles_labels()
    if 0 < len(handles) <= 8:
        axis.legend(fontsize=7, frameon=False, handlelength=3)


def as_svg(figure: plt.Figure) -> str:
    """The picture without the XML head that HTML does not want."""
    figure.tight_layout()
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    plt.close(figure)
    whole = text.getvalue()
    return whole[whole.index("<svg") :]
