"""What a run tells while it trains: a progress bar, `log.csv` and TensorBoard events. Written by
the main process alone."""

from __future__ import annotations

import csv
import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

COLUMNS = ("step", "loss", "learning_rate", "steps_per_second", "peak_gib", "validation_loss")


class Journal:
    """Opened at step `begun`: lines of later steps, left by a run that was killed, are dropped
    first."""

    def __init__(self, output: Path, steps: int, begun: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._path = output / "log.csv"
        kept = [row for row in self.read(output) if int(row["step"]) <= begun]
        part = self._path.with_suffix(".part")
        with part.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(kept)
        part.replace(self._path)
        self._board = SummaryWriter(str(output / "tensorboard"), purge_step=begun + 1)
        self._bar = tqdm(
            total=steps,
            initial=begun,
            unit="step",
            desc="training",
            file=sys.stderr,
            dynamic_ncols=True,
        )
        self._last = (time.monotonic(), begun)

    @staticmethod
    def read(output: Path) -> list[dict[str, str]]:
        """The lines of `log.csv`."""
        path = output / "log.csv"
        if not path.exists():
            return []
        with path.open(newline="") as file:
            return [row for row in csv.DictReader(file) if None not in row.values()]

    def advance(self) -> None:
        self._bar.update()

    def note(
        self, step: int, loss: float, learning_rate: float, validation_loss: float | None = None
    ) -> None:
        """One line; steps per second are counted from the line before."""
        now, (then, step_then) = time.monotonic(), self._last
        self._last = (now, step)
        pace = (step - step_then) / max(now - then, 1e-9)
        values = {
            "loss": round(loss, 6),
            "learning_rate": learning_rate,
            "steps_per_second": round(pace, 4),
            "peak_gib": round(peak_bytes() / 2**30, 3),
            "validation_loss": "" if validation_loss is None else round(validation_loss, 6),
        }
        with self._path.open("a", newline="") as file:
            csv.DictWriter(file, COLUMNS).writerow({"step": step, **values})
        for name, value in values.items():
            if isinstance(value, float):
                self._board.add_scalar(name, value, step)
        self._bar.set_postfix(loss=f"{loss:.4f}")

    def pause(self, seconds: float) -> None:
        """Do not count `seconds` spent on something else than steps."""
        self._last = (self._last[0] + seconds, self._last[1])

    def picture(self, step: int, name: str, picture: Image.Image) -> None:
        from atelier_training.dreambooth.cache import to_tensor

        self._board.add_image(name, (to_tensor(picture)[0] + 1) / 2, step)

    def close(self) -> None:
        self._bar.close()
        self._board.close()


def peak_bytes() -> int:
    """Most memory in use so far: the GPU's if there is one, else the process's resident set."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Loading bars of diffusers and transformers say nothing that the caller's own bar does not,
    nor do warnings that come at every prompt (such as of a T5 that is given fewer tokens than it
    could take)."""
    import diffusers
    import transformers

    old = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    verbosity = diffusers.utils.logging.get_verbosity()
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        if old is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        diffusers.utils.logging.set_verbosity(verbosity)
        diffusers.utils.logging.enable_progress_bar()
        transformers.utils.logging.enable_progress_bar()
