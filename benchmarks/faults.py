"""What workers of `benchmarks.faulty` import: modules that are short of memory now and then.

Every `FAULT_EVERY`th module call (default 100) raises what CUDA raises when memory runs out.
"""

from __future__ import annotations

import itertools
import os
from typing import Any

import torch

import atelier.workers.preloaded  # noqa: F401
from atelier.images import interception, modules

calls, install = itertools.count(1), modules.install


def faulty_install(pipeline: Any) -> list[interception.Gate]:
    gates = install(pipeline)
    for gate in gates:
        gate.real = short_of_memory(gate.real)
    return gates


def short_of_memory(real: Any) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        if next(calls) % int(os.environ.get("FAULT_EVERY", "100")) == 0:
            raise torch.OutOfMemoryError("out of memory, as injected")
        return real(*args, **kwargs)

    return call


modules.install = faulty_install
