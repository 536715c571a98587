"""The panels of the Grafana dashboard, drawn from a soak.

    python -m benchmarks.dashboard docs/images/dashboard.png [--seconds 180] [--clients 12]

A real Prometheus (Debian's package) scrapes the server while `benchmarks.soak` runs; every query of
`manifests/components/monitoring/dashboard.json` is then asked of it and drawn at its panel's place.
A query that has no data ends the run with code 1: so would a panel be empty.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

from atelier.children import free_port
from benchmarks.arms import server_process
from benchmarks.soak import LIMITS, soak

DASHBOARD = Path(__file__).parents[1] / "manifests/components/monitoring/dashboard.json"
LABELS = {"namespace": "studio", "inferenceservice": "shapes", "pod": "shapes-predictor-0"}
"""What the PodMonitor writes beside the server's own labels."""
VARIABLES = {"$namespace": "studio", "$model": "shapes", "$__rate_interval": "20s"}
SCRAPE_S = 2
UNITS = {"reqps": "requests/s", "ops": "1/s", "s": "s", "bytes": "GiB", "short": ""}

Series = dict[str, tuple[list[float], list[float]]]
"""Seconds since the beginning and values, by legend."""


@contextmanager
def prometheus(url: str) -> Iterator[httpx.Client]:
    """A Prometheus that scrapes the server at `url`; a client of its API."""
    port = free_port()
    target = {"targets": [url.removeprefix("http://")], "labels": LABELS}
    job = {"job_name": "atelier", "scrape_interval": f"{SCRAPE_S}s", "static_configs": [target]}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "prometheus.yml").write_text(yaml.safe_dump({"scrape_configs": [job]}))
        command = ["prometheus", "--config.file=prometheus.yml", "--storage.tsdb.path=data"]
        command += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=error"]
        process = subprocess.Popen(command, cwd=folder)
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
                yield client
        finally:
            process.terminate()
            process.wait()


def series(client: httpx.Client, panel: dict[str, Any], began: float, ended: float) -> Series:
    """The lines of a panel, as Grafana would ask for them."""
    found: Series = {}
    for target in panel["targets"]:
        query = target["expr"]
        for name, value in VARIABLES.items():
            query = query.replace(name, value)
        span = {"start": began, "end": ended, "step": SCRAPE_S}
        answer = client.get("/api/v1/query_range", params={"query": query} | span)
        for line in answer.raise_for_status().json()["data"]["result"]:
            legend = target["legendFormat"]
            for name in re.findall(r"{{(\w+)}}", legend):
                legend = legend.replace(f"{{{{{name}}}}}", line["metric"].get(name, ""))
            points = [(at - began, float(value)) for at, value in line["values"]]
            kept = [point for point in points if point[1] == point[1]]  # nothing was counted: NaN
            if kept:
                found[legend] = ([at for at, _ in kept], [value for _, value in kept])
    return found


def draw(panels: list[dict[str, Any]], drawn: list[Series], path: Path) -> None:
    """The picture: each panel where the dashboard has it."""
    from matplotlib.figure import Figure

    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    figure = Figure(figsize=(14, rows * 0.36), layout="constrained", facecolor="#f4f5f5")
    grid = figure.add_gridspec(rows, 24)
    for panel, lines in zip(panels, drawn, strict=True):
        at = panel["gridPos"]
        axes = figure.add_subplot(grid[at["y"] : at["y"] + at["h"], at["x"] : at["x"] + at["w"]])
        unit = panel["fieldConfig"]["defaults"]["unit"]
        for legend, (seconds, values) in sorted(lines.items()):
            scale = 2**30 if unit == "bytes" else 1
            axes.plot(seconds, [value / scale for value in values], label=legend, linewidth=1.4)
        axes.set_title(panel["title"], loc="left", fontsize=10, fontweight="bold")
        axes.set_ylabel(UNITS[unit], fontsize=8)
        axes.set_ylim(0, axes.get_ylim()[1] * 1.25)  # room for the legend
        axes.tick_params(labelsize=8)
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=7, frameon=False, ncols=3, loc="upper left")
    figure.supxlabel("seconds of the soak", fontsize=9)
    figure.savefig(path, dpi=80)


def main() -> None:
    """Run the soak, ask, draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("picture", type=Path)
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--clients", type=int, default=12)
    given = parser.parse_args()
    panels = json.loads(DASHBOARD.read_text())["panels"]
    with (
        server_process("benchmarks.faulty", model_id="builtin/shapes", **LIMITS) as url,
        prometheus(url) as client,
    ):
        began = time.time()
        asyncio.run(soak(url, given.seconds, given.clients, 128))
        time.sleep(2 * SCRAPE_S)
        drawn = [series(client, panel, began, time.time()) for panel in panels]
    empty = [panel["title"] for panel, lines in zip(panels, drawn, strict=True) if not lines]
    draw(panels, drawn, given.picture)
    sys.exit(f"no data: {', '.join(empty)}" if empty else None)


if __name__ == "__main__":
    main()
