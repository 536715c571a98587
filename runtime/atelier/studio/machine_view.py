"""One endpoint as something to look at: who works, what waits, how batches and step times go, and
why the model lies in memory as it does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from atelier.studio import views
from atelier.studio.card import ModelCard
from atelier.studio.readings import Readings
from atelier.units import gib

WIDTH, HEIGHT = 240, 48

DECISIONS = (
    "device",
    "dtype",
    "placement",
    "quantization",
    "compile",
    "attention_backend",
    "vae_slicing",
    "vae_tiling",
    "attention_slicing",
    "max_rows",
    "max_pixels",
)
"""Fields of the memory plan that people ask about, in the order of its own table."""


def machine(card: ModelCard, readings: Readings, problem: str) -> str:
    """The whole panel of an endpoint."""
    head = f"<h2>{escape(card.label)}</h2>"
    if problem or not card.name:
        return f'<section class="machine">{head}{views.problem(problem or card.problem)}</section>'
    parts = [_workers(card.properties.get("workers", ())), _numbers(readings, card)]
    parts.append(_memory(readings))
    if card.kind == "pictures":
        parts += [_batches(readings), _plan(card.properties.get("memory_plan", {}))]
    else:
        parts.append(_facts(card.properties))
    return f'<section class="machine">{head}{"".join(parts)}</section>'


def _workers(workers: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for worker in workers:
        drawing = worker.get("drawing", ())
        bars = "".join(
            f'<progress max="{one.get("total_steps") or 1}" value="{one.get("step", 0)}"'
            f' aria-label="Steps of a running picture"></progress>'
            for one in drawing
        )
        idle = "" if bars else '<span class="hint">idle</span>'
        rows.append(
            f"<li><b>Worker {worker['worker']}</b> <span>{escape(str(worker['device']))}</span>"
            f' <span class="state">{escape(str(worker["state"]))}</span>{bars}{idle}</li>'
        )
    return f'<h3>Workers</h3><ul class="workers">{"".join(rows)}</ul>' if rows else ""


def _numbers(readings: Readings, card: ModelCard) -> str:
    shown = [
        _number("Running", _whole(readings.now("running")), readings.course("running")),
        _number("Waiting", _whole(readings.now("waiting")), readings.course("waiting")),
    ]
    if card.kind == "pictures":
        times = readings.step_times()
        last = next((seconds for seconds in reversed(times) if seconds), None)
        words = f"{last * 1000:.0f} ms" if last else "none yet"
        shown.append(_number("Step time", words, [seconds * 1000 for seconds in times]))
        shown.append(_number("Pictures drawn", _whole(readings.now("pictures")), []))
    else:
        rates = readings.rate("tokens")
        shown.append(_number("Tokens a second", f"{rates[-1]:.0f}" if rates else "none yet", rates))
        use = readings.now("cache_use")
        if use is not None:
            shown.append(_number("Cache in use", f"{use:.0%}", readings.course("cache_use")))
    return f'<div class="numbers">{"".join(shown)}</div>'


def _whole(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.0f}"


def _number(name: str, words: str, course: Sequence[float]) -> str:
    line = sparkline(course, f"{name} over the last minutes") if len(course) > 1 else ""
    return f'<div class="number"><span>{name}</span><b>{escape(words)}</b>{line}</div>'


def sparkline(values: Sequence[float], label: str) -> str:
    """A line over time, from 0 to the highest value."""
    top = max(values) or 1.0
    across = WIDTH / max(1, len(values) - 1)
    points = " ".join(
        f"{index * across:.1f},{HEIGHT - 2 - value / top * (HEIGHT - 4):.1f}"
        for index, value in enumerate(values)
    )
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" role="img"'
        f' aria-label="{escape(label)}, at most {top:.3g}"><polyline points="{points}"/></svg>'
    )


def _memory(readings: Readings) -> str:
    used, free = readings.now("memory_used"), readings.now("memory_free")
    if not used and not free:
        return ""
    used, free = used or 0.0, free or 0.0
    words = f"{gib(int(used))} used, {gib(int(free))} free"
    bar = f'<span class="weights" style="width:{used / (used + free):.1%}"></span>'
    return (
        f'<h3>Device memory</h3><div class="stack" role="img" aria-label="{words}">{bar}</div>'
        f'<p class="hint">{words}</p>'
    )


def _batches(readings: Readings) -> str:
    sizes = readings.batch_sizes()
    while sizes and not sizes[-1][1]:
        sizes.pop()
    if not sizes:
        return ""
    most = max(count for _, count in sizes) or 1
    rows = "".join(
        f'<tr><th scope="row">{escape(words)}</th><td><span class="length"'
        f' style="width:{count / most:.0%}"></span></td><td>{count:.0f}</td></tr>'
        for words, count in sizes
    )
    return (
        '<h3>Batch sizes</h3><table class="batches"><caption>Denoiser calls by their rows, since'
        f" the start</caption>{rows}</table>"
    )


def _plan(plan: Mapping[str, Any]) -> str:
    if not plan:
        return ""
    reasons = plan.get("reasons", {})
    rows = "".join(
        f'<tr><th scope="row">{name.replace("_", " ")}</th><td>{escape(_word(plan[name]))}</td>'
        f"<td>{escape(str(reasons.get(name, '')))}</td></tr>"
        for name in DECISIONS
        if name in plan
    )
    budget = max(1, plan["budget_bytes"])
    parts = (("weights", plan["weights_bytes"]), ("activations", plan["activation_bytes"]))
    stack = "".join(
        f'<span class="{name}" style="width:{min(1, size / budget):.1%}"></span>'
        for name, size in parts
    )
    beside = plan.get("reserved_bytes", {}).items()
    words = ", ".join(f"{name} {gib(size)}" for name, size in (*parts, *beside))
    words += f", headroom {gib(plan['headroom_bytes'])} of {gib(plan['budget_bytes'])}"
    return (
        f'<h3>Memory plan</h3><div class="stack" role="img" aria-label="{words}">{stack}</div>'
        f'<p class="hint">{words}</p><div class="scroll" tabindex="0" role="region"'
        f' aria-label="Memory plan"><table class="plan"><tr><th scope="col">What</th>'
        f'<th scope="col">Chosen</th><th scope="col">Why</th></tr>{rows}</table></div>'
    )


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _facts(properties: Mapping[str, Any]) -> str:
    told = ("engine", "architecture", "dtype", "device", "context", "slots")
    rows = "".join(
        f'<tr><th scope="row">{name}</th><td>{escape(_word(properties[name]))}</td></tr>'
        for name in told
        if name in properties
    )
    return f'<h3>Model</h3><table class="facts">{rows}</table>' if rows else ""
