"""What an evaluation asks for: prompts with the subject, prompts that the model could draw before,
seeds and style."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from atelier_training.dreambooth.errors import OptionError
from atelier_training.dreambooth.samples import Style, Wish


class Questions(BaseModel):
    """Read from a JSON file. `judge` pixels is for the built-in model and the striped ring."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    subject: tuple[str, ...] = Field(min_length=1, description="Prompts that name the subject.")
    prior: tuple[str, ...] = Field(
        (), description="Prompts of the class, or of anything that must not change."
    )
    judge: Literal["likeness", "pixels"] = "likeness"
    seeds: int = Field(2, ge=1, description="Pictures for each prompt.")
    steps: int = Field(20, ge=1)
    guidance: float | None = None
    width: int | None = None
    height: int | None = None

    text_tokens: int | None = Field(None, description="Tokens of the T5 encoder of SD3 and FLUX.")

    @classmethod
    def read(cls, path: Path) -> Questions:
        """Raises OptionError with what is wrong in the file."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            raise OptionError(f"questions={path}: {error}") from None

    def wishes(self, prompts: tuple[str, ...]) -> list[Wish]:
        """`seeds` pictures of each prompt, the same seeds for every prompt."""
        return [Wish(prompt, 1000 + seed) for prompt in prompts for seed in range(self.seeds)]

    @property
    def style(self) -> Style:
        size = (self.width, self.height) if self.width and self.height else None
        return Style(
            steps=self.steps, guidance=self.guidance, size=size, text_tokens=self.text_tokens
        )
