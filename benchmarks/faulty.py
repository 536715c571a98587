"""The server with a device that is short of memory now and then: `python -m benchmarks.faulty serve
...`.

Every `FAULT_EVERY`th module call (default 100) raises what CUDA raises when memory runs out.
"""

from __future__ import annotations

import itertools
import os
from typing import Any

import torch

from atelier.cli.main import main as cli
from atelier.images import interception


def main() -> None:
    every, calls, real_install = (
        int(os.environ.get("FAULT_EVERY", "100")),
        itertools.count(1),
        interception.install,
    )

    def install(pipeline: Any) -> list[interception.Gate]:
        gates = real_install(pipeline)
        for gate in gates:
            gate.real = short_of_memory(gate.real)
        return gates

    def short_of_memory(real: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            if next(calls) % every == 0:
                raise torch.OutOfMemoryError("out of memory, as injected")
            return real(*args, **kwargs)

        return call

    interception.install = install
    cli.main()


if __name__ == "__main__":
    main()
