"""What workers of a faulty server import: engines that hang, die or lose their device when a prompt
says so, and a download that takes for ever."""

from __future__ import annotations

import os
import signal
import time

import atelier.workers.preloaded  # noqa: F401
from atelier.images.drawing import Drawing
from atelier.settings import Settings
from atelier.sources import opened
from atelier.sources.opened import OpenedCheckpoint

begin, open_checkpoint = Drawing.begin, opened.open_checkpoint


def faulty_begin(drawing: Drawing) -> None:
    prompt = drawing.job.arguments["prompt"]
    if "hang" in prompt:
        time.sleep(3600)
    elif "die" in prompt:
        os.kill(os.getpid(), signal.SIGKILL)
    elif "lost" in prompt and not os.path.exists(os.environ["LOST_ONCE"]):  # noqa: PTH110
        open(os.environ["LOST_ONCE"], "w").close()  # noqa: PTH123
        drawing.job = _LosesTheDevice(drawing.job)  # type: ignore[assignment]
    begin(drawing)


class _LosesTheDevice:
    """A prepared request whose pipeline finds the device gone, as CUDA words it."""

    def __init__(self, job: object) -> None:
        self._job = job

    def __getattr__(self, name: str) -> object:
        if name == "arguments":
            raise RuntimeError("CUDA error: device-side assert triggered")
        return getattr(self._job, name)


def slow_opening(settings: Settings) -> OpenedCheckpoint:
    time.sleep(float(os.environ.get("SLOW_FETCH", "0")))
    return open_checkpoint(settings)


Drawing.begin = faulty_begin  # type: ignore[method-assign]
opened.open_checkpoint = slow_opening
