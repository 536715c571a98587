"""The server with a device that is short of memory now and then: `python -m benchmarks.faulty serve ...`.

One module call in `FAULT_EVERY` (default 200), drawn at random, raises what CUDA raises when memory runs out.
"""

from __future__ import annotations

import os
import random
from typing import Any

import torch

from atelier import cli
from atelier.images import interception


def main() -> None:
    every, dice, real_install = int(os.environ.get("FAULT_EVERY", "200")), random.Random(0), interception.install

    def install(pipeline: Any) -> list[interception.Gate]:
        gates = real_install(pipeline)
        for gate in gates:
            gate.real = short_of_memory(gate.real)
        return gates

    def short_of_memory(real: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            if dice.randrange(every) == 0:
                raise torch.OutOfMemoryError("out of memory, as injected")
            return real(*args, **kwargs)

        return call

    interception.install = install
    cli.main()


if __name__ == "__main__":
    main()
