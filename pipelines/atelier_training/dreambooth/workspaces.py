"""Where a pipeline's trainings run: a folder of the volume for each set of options and pictures, so
that a run continues what an equal one, killed or failed, has left."""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from atelier_training.dreambooth.errors import TrainingFailed

PREFIX = "training-"
KEPT_DAYS = 14
"""How long an unfinished training waits for a run of equal options."""


@contextmanager
def workspace_for(
    values: dict[str, Any], pictures: Path, prior: Path, volume: Path
) -> Iterator[Path]:
    """The folder of a training with these options and pictures, for one run at a time. It is
    removed when the block succeeds, as are others that nobody has come back to.

    Raises:
        TrainingFailed: another run of equal options is at work in it.
    """
    place = volume / f"{PREFIX}{_digest(values, pictures, prior)}"
    known = (place / "output").is_dir()
    place.mkdir(parents=True, exist_ok=True)
    _forget_old(volume, place)
    with (place / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise TrainingFailed(
                f"{place}: another run of equal options trains there; wait for its end"
            ) from None
        print(f"{'continuing' if known else 'beginning'} the training in {place}", flush=True)
        yield place
        shutil.rmtree(place)


def _digest(values: dict[str, Any], *folders: Path) -> str:
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode())
    for folder in folders:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            digest.update(f"{path.relative_to(folder)}\0".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def _forget_old(volume: Path, own: Path) -> None:
    """Remove unfinished trainings whose lock has not been taken for so long."""
    for place in volume.glob(f"{PREFIX}*"):
        lock = place / "lock"
        since = (lock if lock.exists() else place).stat().st_mtime
        if place != own and time.time() - since > KEPT_DAYS * 86400:
            shutil.rmtree(place, ignore_errors=True)
