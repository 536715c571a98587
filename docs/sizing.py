"""The sizing table of docs/deploying.md, computed by the memory plan: `make sizing`. `--check`
fails if it is not current.

The models and GPUs are those whose published parameter counts the tests of the memory plan hold.
"""

from __future__ import annotations

import math
import re
import sys
from dataclasses import replace
from pathlib import Path

from atelier.errors import PlanError
from atelier.hardware.account import ModelSizes
from atelier.hardware.choice import plan
from atelier.hardware.machine import Device
from atelier.hardware.plan import Wishes
from atelier.units import GIB
from tests.hardware.test_memory_plan import A10G, AUTO, FLUX, H100, L40S, QWEN, SD15, SD35M, SDXL

PAGE = Path(__file__).with_name("deploying.md")
MARKS = "<!-- sizing -->", "<!-- /sizing -->"
MODELS = {
    "Stable Diffusion 1.5": SD15,
    "Stable Diffusion XL": SDXL,
    "Stable Diffusion 3.5 medium": SD35M,
    "FLUX.1-dev": FLUX,
    "Qwen-Image": QWEN,
}
GPUS = {"A10G": A10G, "L40S": L40S, "H100": H100}
PROCESS_GIB = 6
"""Host memory of the process itself: PyTorch, the CUDA context and libraries."""
WORDS = {"resident": "", "model_offload": "parts in RAM", "group_offload": "blocks in RAM"}


def cell(sizes: ModelSizes, device: Device) -> str:
    """How a model runs on a GPU at its own picture size, rows up to 64, and the pod memory that
    takes."""
    native = replace(
        AUTO, rows=64, pixels=sizes.shapes.native_pixels if sizes.shapes else AUTO.pixels
    )
    try:
        best = plan(sizes, device, replace(native, quantization="auto"))
    except PlanError:
        return "no"
    how = [
        WORDS[best.placement],
        f"`QUANTIZATION={best.quantization}`" if best.quantization != "none" else "",
    ]
    said = ", ".join(filter(None, how)) or "whole"
    return f"{said}; {best.max_rows} rows; {host_gib(sizes, best.placement, native)} GiB"


def host_gib(sizes: ModelSizes, placement: str, wishes: Wishes) -> int:
    """limits.memory in GiB: the process, and what lies in RAM. Weights go to the device part by
    part, so a resident model needs room for its largest part; an offloaded one stays in RAM
    whole."""
    parts = sizes.weights(wishes.dtype_of, "none").parts.values()
    in_ram = max(parts) if placement == "resident" else sum(parts)
    return math.ceil((in_ram / GIB + PROCESS_GIB) / 4) * 4


def table() -> str:
    """The table in Markdown."""
    header = f"| Model | Weights | {' | '.join(GPUS)} |"
    lines = [header, "|---|---|" + "---|" * len(GPUS)]
    for name, sizes in MODELS.items():
        weights = sizes.weights(AUTO.dtype_of, "none").total / GIB
        cells = " | ".join(cell(sizes, device) for device in GPUS.values())
        lines.append(f"| {name} | {weights:.1f} GiB | {cells} |")
    return "\n".join(lines)


def main() -> int:
    page = PAGE.read_text()
    block = f"{MARKS[0]}\n{table()}\n{MARKS[1]}"
    written = re.sub(f"{MARKS[0]}.*{MARKS[1]}", lambda _: block, page, flags=re.DOTALL)
    if "--check" in sys.argv[1:]:
        if written != page:
            print("the sizing table in docs/deploying.md is not current: run make sizing")
        return int(written != page)
    PAGE.write_text(written)
    return 0


if __name__ == "__main__":
    sys.exit(main())
