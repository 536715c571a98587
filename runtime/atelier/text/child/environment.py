"""The environment variables that a child engine gets: this process's, without what it has no use
for and could give away."""

from __future__ import annotations

import os

from atelier.settings import Settings
from atelier.settings.rows import is_secret

NOT_HANDED_ON = {"pythonpath", "pythonhome"} | {
    name for name, field in Settings.model_fields.items() if is_secret(field)
}
"""Paths of this environment's packages, and the keys that this server checks or fetches with."""

SET = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}


def child_environment() -> dict[str, str]:
    """Variables by name."""
    return {
        name: value for name, value in os.environ.items() if name.lower() not in NOT_HANDED_ON
    } | SET
