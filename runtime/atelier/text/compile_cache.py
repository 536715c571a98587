"""Compile and kernel caches that outlive a start: one folder a checkpoint, set of versions and GPU,
below CACHE_DIR.

A cache is trusted only if it was sealed after a good start and every file still has the size noted
then; otherwise it is dropped, since a half-written kernel fails later and far from its cause.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from atelier.settings import Settings

log = logging.getLogger(__name__)

SEAL = "sealed.json"
VARIABLES = {
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton",
    "VLLM_CACHE_ROOT": "vllm",
}


@dataclass(frozen=True)
class CompileCache:
    """One folder of caches."""

    folder: Path

    def prepare(self) -> None:
        """Make the folder; drop what is damaged, or was never sealed."""
        if self.folder.exists() and not self._intact():
            log.warning("the compile cache %s is damaged or unfinished and is dropped", self.folder)
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / SEAL).unlink(missing_ok=True)  # until this start is good

    def seal(self) -> None:
        """Note the files and sizes of a good start."""
        sizes = {str(path.relative_to(self.folder)): path.stat().st_size for path in self._files()}
        (self.folder / SEAL).write_text(json.dumps(sizes))

    def environment(self) -> dict[str, str]:
        """Variables that point the compilers here."""
        return {variable: str(self.folder / name) for variable, name in VARIABLES.items()}

    def _intact(self) -> bool:
        try:
            sizes = json.loads((self.folder / SEAL).read_text())
            return all((self.folder / name).stat().st_size == size for name, size in sizes.items())
        except (OSError, ValueError):
            return False

    def _files(self) -> list[Path]:
        return [path for path in self.folder.rglob("*") if path.is_file() and path.name != SEAL]


def compile_cache(settings: Settings, model: Path) -> CompileCache:
    """The cache for this checkpoint with these versions on this GPU."""
    config = model / "config.json" if model.is_dir() else model
    parts = [
        settings.engine,
        settings.engine_args,
        settings.dtype,
        str(settings.tensor_parallel_size),
        _gpu(),
    ]
    parts += [metadata.version(name) for name in ("torch", "transformers")]
    digest = hashlib.sha256("\n".join(parts).encode())
    digest.update(
        config.read_bytes() if config.suffix == ".json" and config.exists() else str(model).encode()
    )
    return CompileCache(settings.cache_dir / "compile" / digest.hexdigest()[:16])


def _gpu() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
