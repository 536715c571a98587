"""What a checkpoint holds, as data: its components with their files, types and sizes, and what is
wrong with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from atelier.errors import CheckpointError

Kind = Literal["pipeline", "single_file", "language_model", "adapter"]

PICKLES = (".bin", ".ckpt", ".pt", ".pth")


@dataclass(frozen=True)
class Component:
    """One part of a checkpoint. `dtypes` counts elements by torch type name, `linear` the elements
    of weight matrices, `bytes` what the chosen files hold. A scheduler or tokenizer has no files.
    `quantization` is the method the weights were already packed with, or empty."""

    name: str
    class_name: str
    library: str
    config: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[Path, ...] = ()
    bytes: int = 0
    dtypes: Mapping[str, int] = field(default_factory=dict)
    linear: int = 0
    quantization: str = ""
    variants: tuple[str, ...] = ()

    @property
    def parameters(self) -> int:
        """Elements of all tensors, buffers included."""
        return sum(self.dtypes.values())

    @property
    def dtype(self) -> str:
        """The torch name of the type most elements have, or empty without weights."""
        return max(self.dtypes, key=lambda name: self.dtypes[name]) if self.dtypes else ""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as it lies on disk. `pipeline_class` is the diffusers class, the transformers
    architecture or, for a single file, the class its tensor names point to (empty if none does).
    `variant` is the one to load; `variants` are all that some component has ("" is the plain one).
    `remote_code` lists Python files that loading would run, `absent` the components that a pipeline
    of this class can have and this one states it has not."""

    kind: Kind
    path: Path
    pipeline_class: str
    components: tuple[Component, ...]
    variant: str = ""
    variants: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    remote_code: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()

    def component(self, name: str) -> Component | None:
        """The component of that name, if there is one."""
        return next((one for one in self.components if one.name == name), None)

    @property
    def weighted(self) -> tuple[Component, ...]:
        """The components that have weights."""
        return tuple(one for one in self.components if one.files)

    @property
    def bytes(self) -> int:
        """Bytes of all weights as stored."""
        return sum(one.bytes for one in self.components)

    @property
    def dtypes(self) -> dict[str, int]:
        """Elements by torch type name, over all components."""
        total: Counter[str] = Counter()
        for one in self.components:
            total.update(one.dtypes)
        return dict(total)

    def check(self) -> None:
        """Raise CheckpointError with every problem, one a line, if there is any."""
        if self.problems:
            raise CheckpointError(
                f"The checkpoint {self.path} cannot be loaded:\n  " + "\n  ".join(self.problems)
            )
