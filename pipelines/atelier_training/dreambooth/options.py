"""Every option of a training run: one field each, with type, default and one line of help.

The command line, the pipeline and the model card are made from this class; what a value means is
said here alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from atelier_training.dreambooth.errors import OptionError

# May differ between a run and its continuation without changing the trajectory.
FREE_FIELDS = frozenset(
    {
        "output",
        "device",
        "checkpoint_every",
        "keep_checkpoints",
        "log_every",
        "validate_every",
        "validation_prompts",
        "validation_steps",
        "check_memory",
        "shard",
    }
)


class TrainOptions(BaseModel):
    """Validated on construction; use `parse` to get `OptionError`s."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # What is learned from what
    model: Path = Field(description="Checkpoint folder in diffusers' layout.")
    data: Path = Field(description="Folder of pictures of the subject.")
    output: Path = Field(description="Folder for the result, the checkpoints and the log.")
    instance_prompt: str = Field(
        description="Prompt of the subject's pictures, with a rare word as its name."
    )
    captions: Literal["prompt", "files", "names"] = Field(
        "prompt",
        description="Caption of a picture: the instance prompt, its .txt file, or its file name.",
    )
    class_prompt: str = Field(
        "", description="Prompt of the prior class, such as 'a ring'; empty: no prior preservation."
    )
    class_data: Path | None = Field(
        None, description="Folder of class pictures; the missing ones are generated into it."
    )
    class_pictures: int = Field(
        100, ge=1, description="Number of class pictures; several class prompts are split by |."
    )
    class_steps: int = Field(20, ge=1, description="Denoising steps of a class picture.")
    class_guidance: float | None = Field(
        None, ge=0, description="Guidance scale of class pictures; unset: the pipeline's."
    )
    prior: Literal["pictures", "teacher"] = Field(
        "pictures",
        description=(
            "What class pictures teach: themselves, or what the model without its adapter predicts"
            " on them."
        ),
    )
    prior_weight: float = Field(1.0, ge=0, description="Weight of the class pictures' loss.")
    minimum_pictures: int = Field(3, ge=1, description="Fewer pictures of the subject are refused.")

    # What is trained
    method: Literal["lora", "dora", "full"] = Field(
        "lora", description="Low-rank adapter, DoRA, or all weights."
    )
    rank: int = Field(16, ge=1, le=1024, description="Rank of the adapter.")
    alpha: int | None = Field(
        None, ge=1, description="Scale of the adapter is alpha / rank; unset: rank."
    )
    adapter_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout in front of the adapter.")
    targets: Literal["attention", "linear"] = Field(
        "attention",
        description=(
            "Layers that get an adapter: attention projections, or feed-forward layers too."
        ),
    )
    train_text_encoder: bool = Field(False, description="Train the CLIP text encoders along.")
    text_encoder_learning_rate: float | None = Field(
        None, gt=0, description="Unset: the learning rate."
    )

    text_tokens: int | None = Field(
        None,
        ge=1,
        le=512,
        description="Tokens of the T5 encoder of SD3 and FLUX; unset: the pipeline's default.",
    )

    # Pictures
    resolution: int = Field(512, ge=64, le=4096, description="Side of a square picture in pixels.")
    buckets: bool = Field(
        True, description="Keep aspect ratios: pictures of like shape train together."
    )
    views: int = Field(
        1, ge=1, le=64, description="Random crops cached per picture; 1: the centre."
    )
    flip: bool = Field(False, description="Train on mirror images too.")

    # Optimization
    steps: int = Field(500, ge=1, description="Optimizer steps.")
    batch_size: int = Field(
        1, ge=1, description="Subject pictures per forward pass; as many class pictures are added."
    )
    accumulation: int = Field(1, ge=1, description="Forward passes per optimizer step.")
    learning_rate: float = Field(1e-4, gt=0, description="Peak learning rate; about 1 for prodigy.")
    schedule: Literal["constant", "linear", "cosine", "polynomial"] = Field(
        "constant", description="After warm-up."
    )
    warmup: int = Field(0, ge=0, description="Steps of linear warm-up.")
    optimizer: Literal["adamw", "adamw8bit", "prodigy"] = Field(
        "adamw", description="adamw8bit needs bitsandbytes."
    )
    weight_decay: float = Field(1e-2, ge=0)
    max_grad_norm: float = Field(1.0, gt=0, description="Gradients are clipped to this norm.")
    min_snr_gamma: float | None = Field(
        None,
        gt=0,
        description="Min-SNR weighting, arXiv:2303.09556; noise and velocity prediction only.",
    )
    ema_decay: float | None = Field(
        None, gt=0, lt=1, description="Keep a running average and save that."
    )
    seed: int = Field(0, ge=0, lt=2**31, description="The same seed repeats the run exactly.")
    deterministic: bool = Field(False, description="Deterministic GPU kernels too; slower.")

    # Memory and speed
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N.")
    dtype: Literal["auto", "bfloat16", "float32"] = Field(
        "auto", description="Compute type; master weights are float32."
    )
    quantize: Literal["none", "nf4"] = Field(
        "none", description="Keep the frozen denoiser in 4 bits (bitsandbytes)."
    )
    gradient_checkpointing: bool = Field(
        False, description="Recompute activations: less memory, a third slower."
    )
    activation_budget: float = Field(
        1.0,
        gt=0,
        le=1,
        description=(
            "With compile: share of a block's activations that are kept, the rest is recomputed."
        ),
    )
    shard: bool = Field(
        False,
        description=(
            "Each process keeps a part of every weight (FSDP): for models larger than one GPU."
        ),
    )
    compile: bool = Field(
        False, description="Compile the denoiser's blocks; pays off above a few hundred steps."
    )
    check_memory: bool = Field(
        True, description="Refuse a run whose estimate is above the device's free memory."
    )

    # Keeping and watching
    checkpoint_every: int = Field(250, ge=1, description="Steps between checkpoints.")
    keep_checkpoints: int = Field(2, ge=1, description="Older checkpoints are removed.")
    log_every: int = Field(
        10, ge=1, description="Steps between log lines; the GPU is waited for at each."
    )
    validate_every: int = Field(0, ge=0, description="Steps between validations; 0: none.")
    validation_prompts: tuple[str, ...] = Field(
        (), description="Pictures drawn at each validation, split by |."
    )
    validation_steps: int = Field(20, ge=1, description="Denoising steps of a validation picture.")
    early_stop: int = Field(
        0, ge=0, description="Stop after so many validations without a lower loss; 0: never."
    )

    @property
    def with_prior(self) -> bool:
        return bool(self.class_prompt)

    @property
    def class_prompts(self) -> tuple[str, ...]:
        return tuple(part.strip() for part in self.class_prompt.split("|") if part.strip())

    @property
    def class_folder(self) -> Path:
        return self.class_data or self.output / "class"

    @property
    def adapter_alpha(self) -> int:
        return self.rank if self.alpha is None else self.alpha

    @model_validator(mode="after")
    def _agree(self) -> TrainOptions:
        if not self.instance_prompt.strip():
            raise ValueError(
                "instance_prompt is empty; describe the pictures, with a rare word as the subject's"
                " name"
            )
        if self.quantize == "nf4" and self.method == "full":
            raise ValueError("quantize=nf4 freezes the denoiser; use method=lora or dora")
        if self.prior == "teacher" and self.method == "full":
            raise ValueError(
                "prior=teacher needs the model without its adapter; use method=lora or dora"
            )
        if self.shard and self.quantize == "nf4":
            raise ValueError(
                "shard=true cannot split the 4-bit weights of quantize=nf4; use one of them"
            )
        if self.shard and self.optimizer != "adamw":
            raise ValueError(
                f"shard=true needs optimizer=adamw; {self.optimizer} reads whole weights"
            )
        if self.early_stop and not self.validate_every:
            raise ValueError("early_stop needs validate_every > 0")
        if self.resolution % 16:
            raise ValueError(f"resolution={self.resolution} is not a multiple of 16")
        if self.validation_prompts and not self.validate_every:
            raise ValueError("validation_prompts need validate_every > 0")
        if self.activation_budget < 1 and not self.compile:
            raise ValueError(
                f"activation_budget={self.activation_budget} has no effect without compile=true"
            )
        return self

    @classmethod
    def parse(cls, **values: Any) -> TrainOptions:
        """Build options; None means the default.

        Raises:
            OptionError: one line for each bad value: option, value and what is allowed.
        """
        try:
            return cls(**{name: value for name, value in values.items() if value is not None})
        except ValidationError as error:
            raise OptionError("\n".join(map(_line, error.errors(include_url=False)))) from None


def _line(fault: Any) -> str:
    message = fault["msg"].removeprefix("Value error, ")
    if not fault["loc"]:
        return message
    name = ".".join(map(str, fault["loc"]))
    return (
        f"{name} is missing"
        if fault["type"] == "missing"
        else f"{name}={fault['input']!r}: {message}"
    )
