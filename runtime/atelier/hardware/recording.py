"""Recording a CUDA graph in a process that does other things too."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def recording_into(graph: Any, pool: Any = None) -> Iterator[None]:
    """Record into `graph`, a `torch.cuda.CUDAGraph`, what this thread has the device do in the
    block.

    Other threads may use the device meanwhile. Garbage is not collected: a graph that is destroyed
    in the middle ends the recording. After a failure the stream of before is current, and the
    device's generator serves again, which torch leaves waiting for a graph.
    """
    import torch

    collecting = gc.isenabled()
    gc.disable()
    try:
        with (
            torch.cuda.stream(torch.cuda.current_stream()),
            torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"),
        ):
            yield
    except BaseException:
        generator = torch.cuda.default_generators[torch.cuda.current_device()]
        generator.graphsafe_set_state(generator.clone_state())
        raise
    finally:
        if collecting:
            gc.enable()
