"""Ready sets of values for known pairs of model and GPUs, one YAML file each, chosen by PROFILE.

A profile holds `description`, `gpus` (how many and how large) and `values` by setting name; it
overrides the defaults and is itself overridden by environment variables and the command line.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from atelier.errors import PlanError, SettingsError

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Profile:
    """A named set of settings, and the GPUs it was made for: how many, and GiB of memory each."""

    name: str
    description: str
    gpus: int
    gpu_gib: int
    values: dict[str, Any]

    def check(self, free_bytes: list[int]) -> None:
        """Refuse to start on less than the profile needs; `free_bytes` holds the total memory of
        each GPU present.

        Raises:
            PlanError: with both numbers.
        """
        needed = f"PROFILE={self.name} needs {self.gpus} GPU(s) of {self.gpu_gib} GiB"
        if len(free_bytes) < self.gpus:
            raise PlanError(
                f"{needed}, but there are {len(free_bytes)}: choose another profile or give it more"
                " GPUs"
            )
        small = [
            size / 2**30 for size in free_bytes[: self.gpus] if size < 0.9 * self.gpu_gib * 2**30
        ]
        if small:
            raise PlanError(
                f"{needed}, but one has {small[0]:.1f} GiB: choose another profile or a larger GPU"
            )


def names() -> list[str]:
    """All profiles, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def read(name: str) -> Profile:
    """Load one profile: of those here by its name, or a YAML file by its path.

    Raises:
        SettingsError: there is no such profile, or the file is none.
    """
    own = name.endswith((".yaml", ".yml"))
    if not own and name not in names():
        raise SettingsError(
            f"PROFILE={name!r} is not valid: allowed: a .yaml file, {', '.join(names())}"
        )
    try:
        body = yaml.safe_load((Path(name) if own else FOLDER / f"{name}.yaml").read_text())
        gpus = body["gpus"]
        return Profile(name, body["description"], gpus["count"], gpus["gib"], dict(body["values"]))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingsError(f"PROFILE={name}: the file cannot be read: {error}") from None
    except (KeyError, TypeError, ValueError) as error:
        raise SettingsError(
            f"PROFILE={name}: a profile has description, gpus (count, gib) and values: {error!r}"
        ) from None


def check_profile(settings: Any) -> None:
    """Refuse a profile that asks for more GPUs, or larger ones, than there are.

    Raises:
        PlanError: with both numbers.
    """
    if settings.profile:
        import torch

        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        sizes = [torch.cuda.get_device_properties(index).total_memory for index in range(count)]
        read(settings.profile).check(sizes)
