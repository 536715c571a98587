"""All settings of a server in one class: one field an environment variable, with type, default and
one line of help.

`atelier settings` and the README's table are printed from this class. Options of the command line
override variables, variables override the profile named by PROFILE, and the profile overrides the
defaults below.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_origin

from pydantic import Field, PositiveInt, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from atelier.errors import SettingsError
from atelier.profiles import read as read_profile

Switch = Literal["auto", "true", "false"]
"""Three-valued: `auto` lets the memory plan decide."""

Names = Annotated[list[str], NoDecode]
"""A comma-separated list."""


class Settings(BaseSettings):
    """Everything that can be set. Field `model_id` is variable `MODEL_ID`, and so on."""

    model_config = SettingsConfigDict(case_sensitive=False, extra="ignore", frozen=True)

    # What is served
    model_id: str = Field(
        "builtin/shapes",
        description="Folder, .safetensors file, s3://bucket/prefix or Hub id@revision.",
    )
    model_name: str = Field(
        "", description="Name in URLs and answers; empty: the last part of MODEL_ID."
    )
    task: Literal["auto", "image", "text"] = Field(
        "auto", description="What the checkpoint is; auto reads its config."
    )
    pipeline_class: str = Field(
        "", description="diffusers pipeline class to use instead of the checkpoint's own."
    )
    single_file_config: str = Field(
        "", description="Folder with a pipeline's configs, for a single .safetensors file."
    )
    variant: str = Field(
        "", description="Weight file variant, such as fp16; empty: plain files, else the only one."
    )
    scheduler: str = Field(
        "", description="diffusers scheduler class that replaces the checkpoint's."
    )
    lora_paths: Names = Field(
        [],
        description=(
            "LoRA adapters, or folders of them, from where MODEL_ID may come from; comma-separated."
        ),
    )
    default_lora: Names = Field(
        [], description="Adapters, name or name=weight, of requests that name none."
    )
    max_loras: int = Field(
        8, ge=1, description="Adapters kept in memory; the least recently used one goes first."
    )
    allow_pickle: bool = Field(
        False, description="Accept .bin, .ckpt and .pt weights, which can run code when opened."
    )
    trust_remote_code: bool = Field(
        False, description="Run Python code that a checkpoint brings along."
    )

    # Hardware and memory
    device: str = Field("auto", description="auto, cpu, cuda, cuda:N, mps or xpu.")
    dtype: Literal["auto", "bfloat16", "float16", "float32", "native"] = Field(
        "auto", description="Compute type; native is the one the checkpoint's headers state."
    )
    quantization: Literal["none", "auto", "int8", "nf4", "fp8"] = Field(
        "none", description="Weight quantization of the denoiser and large text encoders."
    )
    enable_low_cpu_mem: Switch = Field(
        "auto", description="Load weights shard by shard, without a second copy in RAM."
    )
    enable_attention_slicing: Switch = Field(
        "auto", description="Compute attention in slices: less memory, slower."
    )
    enable_vae_slicing: Switch = Field("auto", description="Decode a batch one picture at a time.")
    enable_vae_tiling: Switch = Field("auto", description="Decode large pictures in tiles.")
    enable_cpu_offload: Switch = Field(
        "auto", description="Keep components in RAM until they are needed."
    )
    compile: Literal["auto", "off", "regional", "full"] = Field(
        "auto", description="torch.compile of the denoiser: its repeated blocks, or all of it."
    )
    enable_cuda_graphs: Switch = Field(
        "auto", description="Record denoiser calls whose shape is seen again, where a GPU can."
    )
    attention_backend: Literal[
        "auto",
        "torch-flash",
        "torch-cudnn",
        "torch-efficient",
        "torch-math",
        "flash-attn",
        "flash-attn-3",
        "sage",
        "xformers",
    ] = Field(
        "auto",
        description="Attention kernel of the denoiser; auto lets torch choose one for every call.",
    )
    step_cache: Literal["off", "low", "medium", "high"] = Field(
        "off",
        description=(
            "Answer denoiser steps from the last ones where little changes: faster, not exact; the"
            " default of a request's step_cache."
        ),
    )
    warmup_sizes: Names = Field(
        [],
        description=(
            "Picture sizes, such as 1024x1024, drawn before ready; compiled models add their native"
            " size."
        ),
    )
    skip_warmup: bool = Field(
        False, description="Be ready without warm-up; the first requests pay for it."
    )
    memory_fraction: float = Field(
        0.92, gt=0, le=1, description="Share of the device's free memory the plan may use."
    )
    omp_num_threads: int | None = Field(
        None,
        ge=1,
        description=(
            "CPU threads of one operation; unset: from the cgroup quota, measured at start."
        ),
    )

    # Requests
    max_pixels: int = Field(
        2048 * 2048, ge=64, description="Largest width x height of a picture, in or out."
    )
    max_steps: int = Field(150, ge=1, description="Largest num_inference_steps.")
    max_images_per_request: int = Field(
        8, ge=1, description="Largest number of pictures of one request, instances counted."
    )
    max_body_bytes: int = Field(
        64 * 2**20, ge=1024, description="Larger request bodies are refused with 413."
    )
    max_batch_size: int = Field(
        16, ge=1, description="Rows of one denoiser call; a guided picture is two. 1: no batching."
    )
    data_parallel_size: int | None = Field(
        None, ge=1, description="Workers, one a device; unset: all visible GPUs, or one on a CPU."
    )
    hang_seconds: float = Field(
        120,
        gt=0,
        description="Seconds at one call after which a worker is replaced; longer calls raise it.",
    )
    max_queue_size: int = Field(
        64, ge=1, description="Requests waiting or running; more are refused with 429."
    )
    request_timeout: float = Field(
        600, gt=0, description="Seconds a request may take, queue included; then 504."
    )
    drain_seconds: float = Field(
        30, ge=0, description="Seconds that running work gets after SIGTERM."
    )

    # Results that wait to be fetched: picture URLs and jobs
    result_seconds: float = Field(
        3600, gt=0, description="Seconds that a picture URL or a finished job stays."
    )
    result_bytes: int = Field(
        512 * 2**20, ge=2**16, description="Memory for them; the oldest give way."
    )
    public_url: str = Field(
        "", description="Base of picture URLs, such as https://host; empty: the request's Host."
    )

    # Language models
    engine: Literal["transformers", "vllm", "sglang", "llamacpp"] = Field(
        "transformers",
        description="What runs a language model: the embedded engine, or a child process.",
    )
    engine_path: str = Field(
        "", description="Environment folder or program of the child engine; empty: /opt/engines."
    )
    engine_args: str = Field(
        "", description="More command-line options for the child engine, verbatim."
    )
    engine_force: bool = Field(
        False, description="Accept options in ENGINE_ARGS that are known to slow the engine."
    )
    tensor_parallel_size: int = Field(
        1, ge=1, description="GPUs that share each layer (child engines)."
    )
    pipeline_parallel_size: int = Field(
        1, ge=1, description="GPUs that share the stack of layers (child engines)."
    )
    enable_expert_parallel: bool = Field(
        False, description="Spread experts over GPUs instead of cutting each one."
    )
    max_model_len: int | None = Field(
        None, ge=16, description="Tokens of prompt and answer; unset: the model's own."
    )
    max_num_seqs: int | None = Field(
        None, ge=1, description="Sequences that run at once; unset: the engine's choice."
    )
    max_num_batched_tokens: int | None = Field(
        None, ge=16, description="Tokens of one prefill step."
    )
    gpu_memory_utilization: float = Field(
        0.9, gt=0, le=1, description="Share of GPU memory a language model may use."
    )
    kv_cache_dtype: str = Field(
        "auto", description="Type of the key-value cache of a child engine, such as fp8."
    )
    tool_call_parser: str = Field(
        "auto", description="Form of tool calls; embedded: auto, hermes, llama3_json, glm47."
    )
    reasoning_parser: str = Field(
        "auto", description="Form of reasoning; embedded: auto (think tags) or none."
    )
    profile: str = Field(
        "", description="Named set of values for a known model and GPUs; see `atelier profiles`."
    )
    warmup: Annotated[list[PositiveInt], NoDecode] = Field(
        [128, 512, 2048],
        description="Prompt lengths run before ready, cut to the context; comma-separated.",
    )

    # Access and logs
    api_keys: Annotated[list[SecretStr], NoDecode] = Field(
        [], description="Accepted keys; empty: no check."
    )
    allowed_image_hosts: Names = Field(
        [], description="Hosts that input pictures may be fetched from; empty: none."
    )
    log_format: Literal["text", "json"] = Field("text", description="Form of the log lines.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe log lines kept."
    )
    metric_aliases: bool = Field(
        True,
        description=(
            "Also name what waits and runs vllm:num_requests_waiting and vllm:num_requests_running,"
            " which autoscalers query."
        ),
    )
    log_prompts: bool = Field(False, description="Write prompts into the log.")

    # Where weights come from
    cache_dir: Path = Field(
        Path("~/.cache/atelier"),
        description="Downloads and compile caches; a writable volume in a cluster.",
    )
    hf_token: SecretStr | None = Field(None, description="Token for the Hub.")
    hf_hub_offline: bool = Field(
        False, description="Never ask the Hub; use what is already in the cache."
    )
    aws_access_key_id: SecretStr | None = Field(
        None, description="S3 key id, as in a data connection."
    )
    aws_secret_access_key: SecretStr | None = Field(
        None, description="S3 secret, as in a data connection."
    )
    aws_session_token: SecretStr | None = Field(
        None, description="S3 session token for temporary credentials."
    )
    aws_s3_endpoint: str = Field("", description="S3 endpoint URL; empty: AWS.")
    aws_s3_bucket: str = Field("", description="Bucket of addresses such as s3:///prefix.")
    aws_default_region: str = Field("us-east-1", description="S3 region.")
    aws_ca_bundle: str = Field(
        "", description="CA file for an S3 endpoint with a private certificate."
    )

    @field_validator(
        "lora_paths",
        "allowed_image_hosts",
        "default_lora",
        "warmup_sizes",
        "warmup",
        "api_keys",
        mode="before",
    )
    @classmethod
    def _split(cls, value: Any) -> Any:
        return (
            [part.strip() for part in value.split(",") if part.strip()]
            if isinstance(value, str)
            else value
        )

    @field_validator("*", mode="before")
    @classmethod
    def _lower(cls, value: Any, info: ValidationInfo) -> Any:
        """Words from a fixed list may come in any case, as `True` does from Python scripts and Helm
        values."""
        field = cls.model_fields[info.field_name or ""]
        return (
            value.lower()
            if isinstance(value, str) and get_origin(field.annotation) is Literal
            else value
        )

    @field_validator("step_cache", mode="before")
    @classmethod
    def _no_first_block(cls, value: Any) -> Any:
        if value == "first-block":
            raise ValueError("allowed: off, low, medium, high; low replaces first-block")
        return value

    @field_validator("device")
    @classmethod
    def _known_device(cls, value: str) -> str:
        if not re.fullmatch(r"auto|cpu|mps|xpu(:\d+)?|cuda(:\d+)?", value):
            raise ValueError("allowed: auto, cpu, cuda, cuda:N, mps, xpu, xpu:N")
        return value

    @field_validator("warmup_sizes")
    @classmethod
    def _sizes(cls, value: list[str]) -> list[str]:
        for size in value:
            if not re.fullmatch(r"[1-9]\d{1,4}x[1-9]\d{1,4}", size):
                raise ValueError(f"allowed: WIDTHxHEIGHT in pixels, not {size!r}")
        return value

    @field_validator("default_lora")
    @classmethod
    def _weighted(cls, value: list[str]) -> list[str]:
        for entry in value:
            if not re.fullmatch(r"[^=]+(=-?\d*\.?\d+)?", entry):
                raise ValueError(f"allowed: name or name=number, not {entry!r}")
        return value

    @field_validator("cache_dir")
    @classmethod
    def _expand(cls, value: Path) -> Path:
        return value.expanduser()

    @property
    def default_adapters(self) -> dict[str, float]:
        """DEFAULT_LORA as name to weight."""
        pairs = [entry.partition("=") for entry in self.default_lora]
        return {name: float(weight or 1) for name, _, weight in pairs}

    @property
    def served_name(self) -> str:
        """MODEL_NAME, or a name made of the last part of MODEL_ID that is safe in a URL."""
        last = (
            self.model_id.rstrip("/").rsplit("/", 1)[-1].split("@")[0].removesuffix(".safetensors")
        )
        return self.model_name or re.sub(r"[^A-Za-z0-9._-]+", "-", last) or "model"


def load_settings(**overrides: Any) -> Settings:
    """Read settings from the environment; `overrides` (from the command line) win.

    Raises:
        SettingsError: one line for each bad value: variable, value (hidden if secret) and what is
            allowed.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    chosen = str(given.get("profile") or os.environ.get("PROFILE") or "")
    try:
        return Settings(**(_profile_values(chosen) | given))
    except ValidationError as error:
        raise SettingsError("\n".join(_lines(error))) from None


def _profile_values(name: str) -> dict[str, Any]:
    """What the profile sets and no environment variable does; none without a name."""
    if not name:
        return {}
    values = read_profile(name).values
    if unknown := set(values) - set(Settings.model_fields):
        raise SettingsError(
            f"profile {name} sets {', '.join(sorted(unknown))}, which are no settings"
        )
    present = {variable.lower() for variable in os.environ}
    return {field: value for field, value in values.items() if field not in present}


def _lines(error: ValidationError) -> Iterator[str]:
    for fault in error.errors(include_url=False):
        name = str(fault["loc"][0])
        value = "(hidden)" if _is_secret(Settings.model_fields[name]) else repr(fault["input"])
        allowed = fault["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
        allowed = (
            "true or false" if fault["type"].startswith("bool") else allowed.split(", unable to")[0]
        )
        yield (
            f"{name.upper()}={value} is not valid:"
            f" {allowed if 'allowed' in allowed else 'allowed: ' + allowed}"
        )


def _is_secret(field: FieldInfo) -> bool:
    return "SecretStr" in str(field.annotation)


@dataclass(frozen=True)
class SettingRow:
    """One line of the settings table."""

    variable: str
    default: str
    value: str
    help: str


def rows(settings: Settings | None = None) -> list[SettingRow]:
    """The table of variables: default, current value (secrets shown as set or unset) and help."""
    current: Mapping[str, Any] = dict(settings) if settings else {}
    table = []
    for name, field in Settings.model_fields.items():
        value = current.get(name)
        shown = ("set" if value else "unset") if _is_secret(field) else _text(value)
        table.append(SettingRow(name.upper(), _text(field.default), shown, field.description or ""))
    return table


def _text(value: Any) -> str:
    if value is None or value == []:
        return ""
    if isinstance(value, list):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
