"""Start to ready against the imports that no server of this kind can avoid, in turn, as a ratio.

    python -m benchmarks.startup [--model builtin/shapes] [--pairs 5]

Both are new processes. The CPU seconds are printed too, because they depend less on what else the
machine does.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import httpx

from atelier.children import free_port

IMPORTS = "import torch, diffusers, kserve"


def imports() -> tuple[float, float]:
    """Wall and CPU seconds of the bare imports."""
    began, before = time.perf_counter(), os.times()
    subprocess.run([sys.executable, "-c", IMPORTS], check=True, stderr=subprocess.DEVNULL)
    after = os.times()
    cpu = (
        after.children_user + after.children_system - before.children_user - before.children_system
    )
    return time.perf_counter() - began, cpu


def start(model: str) -> tuple[float, float]:
    """Wall and CPU seconds from the start of `atelier serve` until `/health` answers 200."""
    url = f"http://127.0.0.1:{free_port()}"
    command = [
        sys.executable,
        "-m",
        "atelier",
        "serve",
        f"--http_port={url.rsplit(':')[-1]}",
        f"--grpc_port={free_port()}",
    ]
    began = time.perf_counter()
    process = subprocess.Popen(
        command,
        env=os.environ | {"MODEL_ID": model},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        with httpx.Client(base_url=url, timeout=5) as client:
            while not _ready(client):
                if process.poll() is not None:
                    sys.exit(f"the server ended with code {process.returncode}")
                time.sleep(0.02)
        wall = time.perf_counter() - began
        ticks = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        return wall, sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
    finally:
        process.terminate()
        process.wait(60)


def _ready(client: httpx.Client) -> bool:
    try:
        return client.get("/health").status_code == 200
    except httpx.TransportError:
        return False


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="builtin/shapes")
    parser.add_argument("--pairs", type=int, default=5)
    options = parser.parse_args()
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs")
    imports()  # brings the files into the page cache
    pairs = [(imports(), start(options.model)) for _ in range(options.pairs)]
    for bare, served in pairs:
        print(
            f"imports {bare[0]:.2f} s ({bare[1]:.2f} s of CPU)  ready {served[0]:.2f} s"
            f" ({served[1]:.2f} s of CPU)"
        )
    for index, name in enumerate(("wall", "CPU")):
        ratio = statistics.median(served[index] / bare[index] for bare, served in pairs)
        print(f"ratio of {name} seconds, median of {len(pairs)} pairs: {ratio:.2f}")


if __name__ == "__main__":
    main()
