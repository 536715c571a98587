"""The groups of settings, and what serves a model: the two facts a field carries besides its
type, default and help."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field
from pydantic.fields import FieldInfo

Server = Literal["image", "text", "vllm", "sglang", "vllm-omni", "llamacpp"]
"""What heeds a setting: the picture engine, the embedded text engine, or a child engine."""

PICTURES: frozenset[Server] = frozenset({"image"})
OWN: frozenset[Server] = frozenset({"image", "text"})
CHILDREN: frozenset[Server] = frozenset({"vllm", "sglang", "vllm-omni", "llamacpp"})
LANGUAGE_CHILDREN: frozenset[Server] = frozenset({"vllm", "sglang"})
PYTHON_CHILDREN: frozenset[Server] = LANGUAGE_CHILDREN | {"vllm-omni"}
TEXT: frozenset[Server] = CHILDREN | {"text"}
SPECULATORS: frozenset[Server] = TEXT - {"vllm-omni"}
ALL: frozenset[Server] = TEXT | PICTURES


@dataclass(frozen=True)
class Group:
    """A heading of the settings page. Called, it makes a field of the group."""

    title: str

    def __call__(
        self, default: Any, description: str, heeded_by: Collection[Server] = ALL, **limits: Any
    ) -> Any:
        """A field.

        Args:
            heeded_by: the servers that read it; others name it at start if it was set.
            limits: pydantic's, such as `ge`.
        """
        carried: dict[str, Any] = {"group": self.title, "heeded_by": sorted(heeded_by)}
        return Field(default, description=description, json_schema_extra=carried, **limits)


MODEL = Group("Model")
MEMORY = Group("Device and memory")
SPEED = Group("Speed and warm-up")
REQUESTS = Group("Requests and results")
MARKS = Group("Filters and marks")
PROCESSES = Group("Workers and engines")
LANGUAGE = Group("Language models")
SPECULATION = Group("Speculative decoding")
ACCESS = Group("Access and logs")
SOURCES = Group("Where weights come from")
ASSISTANTS = Group("Assistants")

GROUPS = (
    MODEL,
    MEMORY,
    SPEED,
    REQUESTS,
    MARKS,
    PROCESSES,
    LANGUAGE,
    SPECULATION,
    ACCESS,
    SOURCES,
    ASSISTANTS,
)


def group_of(field: FieldInfo) -> str:
    """The title of a field's group."""
    return str(_carried(field)["group"])


def heeds(server: Server, field: FieldInfo) -> bool:
    """Whether that server reads the setting."""
    return server in _carried(field)["heeded_by"]


def _carried(field: FieldInfo) -> dict[str, Any]:
    assert isinstance(field.json_schema_extra, dict)
    return field.json_schema_extra
